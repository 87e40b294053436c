//! The frame of every page: its head, which lets nothing in from outside, and its body.
//!
//! A page has no script and asks no network. A content security policy in it says so to the browser as well: even if a
//! script came into it, it would not run.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use maud::{DOCTYPE, Markup, PreEscaped, html};
use sha2::{Digest, Sha256};

use super::{shown::line, style};

/// Makes a page; `facts` are names and values for programs.
pub(super) fn page(title: &str, facts: &[(&str, String)], body: &Markup) -> Markup {
    let css = style::css();
    let style_hash = STANDARD.encode(Sha256::digest(&css));
    let policy = format!(
        "default-src 'none'; style-src 'sha256-{style_hash}'; img-src data:; base-uri 'none'; form-action 'none'"
    );
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                @for (name, value) in facts {
                    meta name=(name) content=(line(value));
                }
                meta http-equiv="Content-Security-Policy" content=(policy);
                meta name="referrer" content="no-referrer";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (line(title)) }
                style { (PreEscaped(css)) }
            }
            body { main { (body) } }
        }
    }
}
