//! How pages look: the colours, and the rules that use them by name only.
//!
//! There are two palettes, light and dark; what is printed is light. Every text colour can be read on every background it
//! may stand on (WCAG AA, 4.5 to 1), which a test computes. Nothing is told by colour alone: verdicts have a sign and a word.

/// The colours of a page, as `#rrggbb`.
struct Palette {
    page: &'static str,
    card: &'static str,
    sunken: &'static str,
    border: &'static str,
    text: &'static str,
    muted: &'static str,
    link: &'static str,
    good: &'static str,
    good_soft: &'static str,
    bad: &'static str,
    bad_soft: &'static str,
    warn: &'static str,
    warn_soft: &'static str,
    idle: &'static str,
    idle_soft: &'static str,
}

const LIGHT: Palette = Palette {
    page: "#f6f7f9",
    card: "#ffffff",
    sunken: "#f1f3f6",
    border: "#d8dde4",
    text: "#1a1f26",
    muted: "#566070",
    link: "#0a58a6",
    good: "#0f6a33",
    good_soft: "#e4f4e9",
    bad: "#ad1f1b",
    bad_soft: "#fdebea",
    warn: "#874900",
    warn_soft: "#fdf1da",
    idle: "#515b68",
    idle_soft: "#ebeef2",
};

const DARK: Palette = Palette {
    page: "#0d1015",
    card: "#151a21",
    sunken: "#1c222b",
    border: "#2e3641",
    text: "#e6eaf0",
    muted: "#9aa6b4",
    link: "#79b4f7",
    good: "#62d28d",
    good_soft: "#12301f",
    bad: "#ff918a",
    bad_soft: "#3d1817",
    warn: "#f1b85e",
    warn_soft: "#38290d",
    idle: "#aab5c2",
    idle_soft: "#262d37",
};

impl Palette {
    fn named(&self) -> [(&'static str, &'static str); 15] {
        [
            ("page", self.page),
            ("card", self.card),
            ("sunken", self.sunken),
            ("border", self.border),
            ("text", self.text),
            ("muted", self.muted),
            ("link", self.link),
            ("good", self.good),
            ("good-soft", self.good_soft),
            ("bad", self.bad),
            ("bad-soft", self.bad_soft),
            ("warn", self.warn),
            ("warn-soft", self.warn_soft),
            ("idle", self.idle),
            ("idle-soft", self.idle_soft),
        ]
    }

    fn rule(&self) -> String {
        let set = self
            .named()
            .map(|(name, colour)| format!("--{name}:{colour}"));
        format!(":root{{{}}}", set.join(";"))
    }
}

/// The style sheet of every page.
pub(super) fn css() -> String {
    let light = LIGHT.rule();
    let dark = DARK.rule();
    format!(
        "{light}\n:root{{color-scheme:light dark}}\n\
         @media screen and (prefers-color-scheme:dark){{{dark}}}\n{RULES}\n{PRINT}"
    )
}

const RULES: &str = r#"
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;text-size-adjust:100%}
body{margin:0;background:var(--page);color:var(--text);font:15px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;overflow-wrap:anywhere}
main{max-width:1000px;margin:0 auto;padding:28px 20px 48px}
h1,h2,h3{line-height:1.25;margin:0;font-weight:650;letter-spacing:-.01em}
h1{font-size:2.1rem;letter-spacing:-.022em;display:flex;align-items:center;gap:.5em}
h2{font-size:1.22rem}
h3{font-size:.95rem;margin:26px 0 8px}
p{margin:.4em 0}
a{color:var(--link);text-underline-offset:2px}
a:focus-visible,summary:focus-visible,.scroll:focus-visible{outline:2px solid var(--link);outline-offset:2px;border-radius:4px}
ul{margin:.4em 0;padding-left:1.2em}
li{margin:.2em 0}
code,pre,.mono{font-family:ui-monospace,SFMono-Regular,"SF Mono",Menlo,Consolas,"Liberation Mono",monospace;font-size:.86em}
code{overflow-wrap:anywhere}
time,.num,td,dd{font-variant-numeric:tabular-nums}
.muted{color:var(--muted)}
.small{font-size:.87rem}
.brand{display:flex;justify-content:space-between;flex-wrap:wrap;gap:2px 16px;margin:0 2px 14px;font-size:.87rem;color:var(--muted)}
.brand b{color:var(--text);font-weight:650}
.card{background:var(--card);border:1px solid var(--border);border-radius:10px;padding:22px 24px;margin:0 0 18px}
.card>h2:first-child{margin-bottom:12px}
.verdict{border-top:5px solid var(--tone);padding-top:22px}
.verdict .eyebrow{margin:0 0 6px;color:var(--muted)}
.verdict .eyebrow bdi{color:var(--text);font-weight:650}
.verdict h1{color:var(--tone)}
.mark{flex:none;display:inline-grid;place-items:center;width:1.35em;height:1.35em;border-radius:50%;background:var(--soft);border:2px solid var(--tone);color:var(--tone);font-size:.78em;line-height:1}
.lead{font-size:1.12rem;margin:.7em 0 0}
.good{--tone:var(--good);--soft:var(--good-soft)}
.bad{--tone:var(--bad);--soft:var(--bad-soft)}
.warn{--tone:var(--warn);--soft:var(--warn-soft)}
.idle{--tone:var(--idle);--soft:var(--idle-soft)}
.why{background:var(--soft);border-left:4px solid var(--tone);border-radius:0 6px 6px 0;padding:10px 14px;margin:14px 0 0}
ul.why{list-style:none}
.why li{margin:.15em 0}
.why>:first-child{margin-top:0}
.why>:last-child{margin-bottom:0}
.figures{display:grid;grid-template-columns:1.15fr 1fr 1fr 1.3fr;gap:0;margin:22px 0 0;border-top:1px solid var(--border)}
.figures>div{padding:14px 16px 0;border-left:1px solid var(--border);margin-top:12px}
.figures>div:first-child{border-left:0;padding-left:0}
.figures>div{padding-top:2px}
.figures dt{font-size:.8rem;color:var(--muted)}
.figures dd{margin:2px 0 0;font-size:1.12rem;font-weight:650;letter-spacing:-.01em}
.figures dd small{display:block;font-size:.8rem;font-weight:400;letter-spacing:0;color:var(--muted)}
.plate{display:inline-block;white-space:nowrap;font-size:.8rem;font-weight:600;line-height:1.6;padding:0 9px;border-radius:99px;background:var(--soft);color:var(--tone);border:1px solid var(--tone)}
.head{display:flex;align-items:center;flex-wrap:wrap;gap:6px 12px;margin-bottom:4px}
.facts{display:grid;grid-template-columns:repeat(auto-fill,minmax(215px,1fr));gap:12px 22px;margin:12px 0 0}
.facts dt{font-size:.8rem;color:var(--muted)}
.facts dd{margin:0}
.facts .wide{grid-column:1/-1}
.scroll{overflow-x:auto;max-width:100%}
table{border-collapse:collapse;width:100%;font-size:.92rem}
th{text-align:left;font-size:.8rem;font-weight:600;color:var(--muted);padding:6px 14px 6px 0;border-bottom:1px solid var(--border);white-space:nowrap}
td{padding:8px 14px 8px 0;border-bottom:1px solid var(--border);vertical-align:top}
th:last-child,td:last-child{padding-right:0}
tbody tr:last-child>td{border-bottom:0}
td.num,th.num{text-align:right;white-space:nowrap}
.table td{white-space:nowrap}
.table td.text{white-space:normal;min-width:13em}
.checks{table-layout:fixed}
.checks th:nth-child(1){width:34%}
.checks th:nth-child(3){width:112px}
.checks th:nth-child(4){width:100px}
.checks th:nth-child(5){width:96px}
.checks tr.check>td{border-bottom:0;padding-bottom:2px}
.checks tr.more>td{padding-top:0;padding-bottom:10px}
.checks tr:target>td{background:var(--sunken)}
.checks .name{font-weight:600}
.checks .name small{display:block;font-weight:400;color:var(--muted)}
.saw{color:var(--tone)}
details{margin:6px 0 0}
summary{cursor:pointer;color:var(--link);font-size:.9rem;width:fit-content;max-width:100%}
pre{margin:8px 0 0;padding:12px 14px;background:var(--sunken);border:1px solid var(--border);border-radius:8px;overflow:auto;max-height:32em;line-height:1.5;white-space:pre;overflow-wrap:normal;tab-size:4}
pre.out{max-height:16em;margin:4px 0 2px}
.gap{margin:8px 0 0;text-align:center;font-size:.87rem;color:var(--muted)}
.attempts{margin:8px 0 2px;padding:0;list-style:none;border-left:2px solid var(--border)}
.attempts>li{margin:0;padding:3px 0 3px 12px;font-size:.9rem}
figure{margin:0}
figcaption{font-size:.87rem;color:var(--muted);margin-top:6px}
.shots{display:grid;grid-template-columns:repeat(auto-fill,minmax(250px,1fr));gap:16px}
.shots img{display:block;width:100%;height:auto;border:1px solid var(--border);border-radius:8px;background:var(--sunken)}
.hash{display:block;font-size:.76rem}
svg{display:block;overflow:visible}
svg svg{overflow:hidden}
svg text{font-size:12px;fill:var(--text)}
svg .halo{paint-order:stroke;stroke:var(--card);stroke-width:5px;stroke-linejoin:round}
svg .axis{fill:var(--muted);font-size:11px}
svg .grid{stroke:var(--border);stroke-width:1}
svg .base{stroke:var(--muted);stroke-width:1}
svg .stem{stroke:var(--tone);stroke-width:2}
svg .dot{fill:var(--tone)}
svg .bar{fill:var(--soft);stroke:var(--tone);stroke-width:1.5}
svg .try{stroke:var(--tone);stroke-width:1.5}
svg .hit{fill:var(--tone)}
svg .sign{fill:var(--tone);font-weight:700}
svg .path{stroke:var(--good);stroke-width:1.5;opacity:.55}
svg .now{fill:none;stroke:var(--tone);stroke-width:2}
.key{display:flex;flex-wrap:wrap;gap:2px 18px}
.now-row td{font-weight:600}
footer{color:var(--muted);font-size:.82rem;margin:22px 2px 0}
@media (max-width:640px){
main{padding:14px 12px 32px}
h1{font-size:1.6rem}
.card{padding:16px 15px;border-radius:8px}
.figures{grid-template-columns:1fr 1fr;gap:0 14px}
.figures>div,.figures>div:first-child{border-left:0;padding:2px 0 0}
svg text{font-size:11px}
.figures dd{font-size:1.02rem}
.facts{grid-template-columns:1fr 1fr;gap:10px 14px}
.checks thead{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
.checks,.checks tbody,.checks tr,.checks td{display:block}
.checks tr.check{display:flex;flex-wrap:wrap;gap:1px 14px;align-items:center}
.checks tr.check>td:nth-child(-n+2){flex-basis:100%}
.checks td{border:0;padding:0 0 3px}
.checks td.num{text-align:left;color:var(--muted);font-size:.87rem}
.checks tr.check{padding-top:10px}
.checks tr.more{border-bottom:1px solid var(--border)}
.checks tr.more:last-child{border-bottom:0}
}
"#;

const PRINT: &str = r#"
@media print{
@page{margin:16mm 14mm}
body{background:var(--card);font-size:10pt}
main{max-width:none;padding:0}
.card{border:0;border-top:1px solid var(--border);border-radius:0;padding:12pt 0;margin:0}
.verdict{border-top:5px solid var(--tone)}
.mark,.plate,.why,svg,pre{print-color-adjust:exact;-webkit-print-color-adjust:exact}
h2,h3,figure,.shots>*,tr.check{break-inside:avoid;break-after:auto}
h2,h3{break-after:avoid}
.figures dd{font-size:1rem}
pre{white-space:pre-wrap;overflow-wrap:anywhere;max-height:none;overflow:visible;font-size:8pt}
pre.out{max-height:none}
.scroll{overflow:visible}
.table td{white-space:normal}
details::details-content{content-visibility:visible;display:block;height:auto}
summary{list-style:none;color:var(--text)}
a{color:var(--text);text-decoration:none}
.screen{display:none}
}
"#;

#[cfg(test)]
mod tests {
    use super::*;

    /// The names of what text is set in, and of what it may stand on.
    const TEXTS: [&str; 7] = ["text", "muted", "link", "good", "bad", "warn", "idle"];
    const GROUNDS: [&str; 3] = ["page", "card", "sunken"];
    const TONES: [&str; 4] = ["good", "bad", "warn", "idle"];

    fn colour(palette: &Palette, name: &str) -> [f64; 3] {
        let named = palette.named();
        let (_, text) = named.iter().find(|(one, _)| *one == name).unwrap();
        [1, 3, 5].map(|at| {
            let value = f64::from(u8::from_str_radix(&text[at..at + 2], 16).unwrap()) / 255.0;
            if value <= 0.040_45 {
                value / 12.92
            } else {
                ((value + 0.055) / 1.055).powf(2.4)
            }
        })
    }

    fn luminance([red, green, blue]: [f64; 3]) -> f64 {
        0.2126 * red + 0.7152 * green + 0.0722 * blue
    }

    fn contrast(palette: &Palette, one: &str, other: &str) -> f64 {
        let one = luminance(colour(palette, one)) + 0.05;
        let other = luminance(colour(palette, other)) + 0.05;
        one.max(other) / one.min(other)
    }

    #[test]
    fn the_contrast_is_that_of_the_standard() {
        let palette = Palette {
            text: "#000000",
            muted: "#767676",
            page: "#ffffff",
            ..LIGHT
        };
        assert!((contrast(&palette, "text", "page") - 21.0).abs() < 0.01);
        assert!((contrast(&palette, "page", "muted") - 4.54).abs() < 0.01);
    }

    #[test]
    fn every_text_can_be_read_on_every_ground_it_stands_on() {
        for (scheme, palette) in [("light", LIGHT), ("dark", DARK)] {
            let mut pairs: Vec<(String, String)> = Vec::new();
            for text in TEXTS {
                pairs.extend(GROUNDS.map(|ground| (text.into(), ground.into())));
            }
            for tone in TONES {
                let soft = format!("{tone}-soft");
                pairs.extend(
                    ["text", "muted", "link", tone].map(|text| (text.into(), soft.clone())),
                );
            }
            for (text, ground) in pairs {
                let ratio = contrast(&palette, &text, &ground);
                assert!(ratio >= 4.5, "{scheme}: {text} on {ground}: {ratio:.2}");
            }
            for tone in TONES {
                let ratio = contrast(&palette, tone, "card");
                assert!(ratio >= 3.0, "{scheme}: lines of {tone}: {ratio:.2}");
            }
        }
    }

    #[test]
    fn the_rules_use_no_other_colours() {
        let rules = format!("{RULES}{PRINT}");
        for declaration in rules.split([';', '{', '}', '\n']) {
            let Some((property, value)) = declaration.split_once(':') else {
                continue;
            };
            let named = |names: &[&str]| {
                names.iter().any(|name| value == format!("var(--{name})"))
                    || ["var(--tone)", "none"].contains(&value)
            };
            match property.trim() {
                "color" => assert!(named(&TEXTS), "{declaration}"),
                "background" => {
                    assert!(named(&GROUNDS) || value == "var(--soft)", "{declaration}");
                }
                "fill" => assert!(named(&TEXTS) || value == "var(--soft)", "{declaration}"),
                _ => {}
            }
            assert!(
                !value.contains('#') && !value.contains("rgb"),
                "{declaration}"
            );
        }
        let css = css();
        assert!(!css.contains("url(") && !css.contains("@import") && !css.contains('<'));
    }
}
