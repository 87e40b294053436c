//! The published schema and the types say the same.

use std::collections::BTreeSet;

use regex::Regex;
use serde_json::{Value, json};

use super::{key, sample};
use crate::{
    outcome::{ATTEMPTS_KEPT, Earlier, FORMAT, Link, Report, Verdict},
    report::{store::HISTORY_MAX, verify},
};

/// Fields that reports from before them do not have.
const OPTIONAL: [&str; 1] = ["machine_id"];

fn schema() -> Value {
    serde_json::from_str(include_str!("../../../report.schema.json")).unwrap()
}

fn document(report: &Report) -> Value {
    serde_json::from_slice(&crate::report::json(report, &key()).unwrap()).unwrap()
}

/// A report in which every list has something and nothing that may be there is missing.
fn full() -> Report {
    let mut report = sample::failed();
    report.previous = Some(Link {
        id: "20261127-021500-0001".into(),
        sha256: "ab".repeat(32),
    });
    report.history = vec![Earlier {
        id: "20261127-021500-0001".into(),
        started: "2026-11-27T02:15:00Z".into(),
        verdict: Verdict::Cancelled,
        rto_ms: Some(1),
        rpo_ms: None,
    }];
    report
}

/// The schema that one stands for.
fn resolved<'a>(root: &'a Value, schema: &'a Value) -> &'a Value {
    match schema.get("$ref").and_then(Value::as_str) {
        Some(path) => root.pointer(path.strip_prefix('#').unwrap()).expect(path),
        None => schema,
    }
}

/// Checks a value by the keywords of JSON Schema that the schema uses; a keyword that is not known here is an error.
fn errors(root: &Value, schema: &Value, value: &Value, at: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (keyword, says) in schema.as_object().unwrap() {
        let is_kept = match keyword.as_str() {
            "$schema" | "$defs" | "title" | "description" | "format" => true,
            "contentEncoding" | "contentMediaType" => true,
            "$ref" => {
                found.extend(errors(root, resolved(root, schema), value, at));
                true
            }
            "anyOf" => {
                let mut options = says.as_array().unwrap().iter();
                options.any(|one| errors(root, one, value, at).is_empty())
            }
            "type" => match says {
                Value::Array(types) => types.iter().any(|one| is_type(one, value)),
                one => is_type(one, value),
            },
            "const" => value == says,
            "enum" => says.as_array().unwrap().contains(value),
            "pattern" => {
                let pattern = Regex::new(says.as_str().unwrap()).unwrap();
                value.as_str().is_none_or(|text| pattern.is_match(text))
            }
            "minimum" => value
                .as_u64()
                .is_none_or(|number| number >= says.as_u64().unwrap()),
            "maximum" => value
                .as_u64()
                .is_none_or(|number| number <= says.as_u64().unwrap()),
            "maxItems" => {
                let most = says.as_u64().unwrap() as usize;
                value.as_array().is_none_or(|all| all.len() <= most)
            }
            "required" => {
                let has = |name: &Value| value.get(name.as_str().unwrap()).is_some();
                !value.is_object() || says.as_array().unwrap().iter().all(has)
            }
            "properties" => {
                for (name, one) in says.as_object().unwrap() {
                    if let Some(value) = value.get(name) {
                        found.extend(errors(root, one, value, &format!("{at}/{name}")));
                    }
                }
                true
            }
            "additionalProperties" => {
                let known = |name: &String| schema["properties"].get(name).is_some();
                says.as_bool().unwrap() || value.as_object().is_none_or(|all| all.keys().all(known))
            }
            "items" => {
                for (n, one) in value.as_array().into_iter().flatten().enumerate() {
                    found.extend(errors(root, says, one, &format!("{at}/{n}")));
                }
                true
            }
            unknown => panic!("{at}: the keyword {unknown} is not known"),
        };
        if !is_kept {
            found.push(format!("{at}: {keyword}"));
        }
    }
    found
}

fn is_type(name: &Value, value: &Value) -> bool {
    match name.as_str().unwrap() {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.is_u64() || value.is_i64(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        other => panic!("{other}"),
    }
}

fn is_valid(value: &Value) -> bool {
    let root = schema();
    errors(&root, &root, value, "").is_empty()
}

/// Compares the fields of values with those of the schema, both ways; collects what was met.
fn compare(root: &Value, schema: &Value, value: &Value, at: &str, met: &mut BTreeSet<String>) {
    let mut options = vec![schema];
    options.extend(schema["anyOf"].as_array().into_iter().flatten());
    for option in options {
        if let Some(path) = option.get("$ref").and_then(Value::as_str) {
            if !value.is_null() {
                met.insert(path.replace("#/$defs/", ""));
            }
            compare(root, resolved(root, option), value, at, met);
        }
    }
    match value {
        Value::Object(fields) if schema.get("properties").is_some() => {
            let properties = schema["properties"].as_object().unwrap();
            let of_value: BTreeSet<&str> = fields.keys().map(String::as_str).collect();
            let of_schema: BTreeSet<&str> = properties.keys().map(String::as_str).collect();
            let required = schema["required"].as_array().unwrap().iter();
            let required: BTreeSet<&str> = required.map(|name| name.as_str().unwrap()).collect();
            assert_eq!(of_value, of_schema, "fields of {at}");
            let optional = BTreeSet::from(OPTIONAL);
            let always: BTreeSet<&str> = of_schema.difference(&optional).copied().collect();
            assert_eq!(required, always, "required fields of {at}");
            for (name, one) in fields {
                let at = format!("{at}/{name}");
                assert!(
                    properties[name]["description"].is_string(),
                    "{at} is not described"
                );
                compare(root, &properties[name], one, &at, met);
            }
        }
        Value::Array(all) if schema.get("items").is_some() => {
            for one in all {
                compare(root, &schema["items"], one, at, met);
            }
        }
        _ => {}
    }
}

#[test]
fn every_field_is_in_the_schema_and_every_one_of_the_schema_in_the_report() {
    let root = schema();
    let mut met = BTreeSet::new();
    compare(&root, &root, &document(&full()), "", &mut met);
    let defined: BTreeSet<String> = root["$defs"].as_object().unwrap().keys().cloned().collect();
    assert_eq!(met, defined);
}

#[test]
fn reports_are_as_the_schema_says() {
    let root = schema();
    let mut bare = sample::passed();
    bare.machines.clear();
    bare.rto_ms = None;
    let mut pointless = sample::failed();
    pointless.machines[0].point = None;
    for report in [sample::passed(), full(), bare, pointless] {
        assert_eq!(
            errors(&root, &root, &document(&report), ""),
            Vec::<String>::new()
        );
    }
}

#[test]
fn the_schema_has_the_bounds_and_names_of_the_types() {
    let defined = &schema()["$defs"];
    let report = &defined["report"]["properties"];
    assert_eq!(report["format"]["const"], FORMAT);
    assert_eq!(report["history"]["maxItems"], HISTORY_MAX);
    assert_eq!(
        defined["check"]["properties"]["attempts"]["maxItems"],
        ATTEMPTS_KEPT
    );
    let verdicts = [
        Verdict::Proved,
        Verdict::Failed,
        Verdict::Error,
        Verdict::Cancelled,
        Verdict::Skipped,
    ];
    assert_eq!(defined["verdict"]["enum"], json!(verdicts));
    assert_eq!(json!(verdicts), json!(verdicts.map(Verdict::name)));
}

#[test]
fn what_is_missing_or_of_another_type_is_not_as_the_schema_says() {
    fn paths(value: &Value, at: &str, all: &mut Vec<String>) {
        for (name, one) in value.as_object().into_iter().flatten() {
            let at = format!("{at}/{name}");
            all.push(at.clone());
            paths(one, &at, all);
        }
        if let Some(one) = value.as_array().and_then(|all| all.first()) {
            paths(one, &format!("{at}/0"), all);
        }
    }
    let good = document(&full());
    assert!(is_valid(&good));
    let mut all = Vec::new();
    paths(&good, "", &mut all);
    assert!(all.len() > 90, "{}", all.len());
    for path in all {
        let mut other = good.clone();
        *other.pointer_mut(&path).unwrap() = json!(-1.5);
        assert!(!is_valid(&other), "{path} of another type");
        let (parent, name) = path.rsplit_once('/').unwrap();
        if OPTIONAL.contains(&name) {
            continue;
        }
        let mut missing = good.clone();
        missing
            .pointer_mut(parent)
            .unwrap()
            .as_object_mut()
            .unwrap()
            .remove(name);
        assert!(!is_valid(&missing), "without {path}");
    }
}

#[test]
fn a_report_from_before_a_field_is_read_and_is_as_the_schema_says() {
    let mut old = document(&full());
    for machine in old["report"]["machines"].as_array_mut().unwrap() {
        machine.as_object_mut().unwrap().remove("machine_id");
    }
    assert!(is_valid(&old));
    let read: Report = serde_json::from_value(old["report"].clone()).unwrap();
    assert_eq!(read.machines[0].machine_id, "");
}

#[test]
fn a_report_with_fields_of_a_later_version_is_as_the_schema_says_and_is_verified() {
    let key = key();
    let mut report = serde_json::to_value(full()).unwrap();
    report["later"] = json!({"a": 1});
    report["machines"][0]["later"] = json!([]);
    let raw = report.to_string();
    let signature = key.sign(crate::report::Form::Json, raw.as_bytes());
    let text = crate::report::json::write(&raw, &key.public().to_string(), &signature);
    assert!(verify(text.as_bytes(), Some(&key.public())).is_ok());
    let mut document: Value = serde_json::from_str(&text).unwrap();
    assert!(is_valid(&document));
    document["later"] = json!(1);
    assert!(!is_valid(&document));
}
