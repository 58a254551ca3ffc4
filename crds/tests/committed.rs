//! The committed YAML is what the types say, and the examples are valid.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

use basalt_crds::{Snapshot, StorageNode, Volume, manifests};

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

#[test]
fn the_yaml_is_generated_from_these_types() {
    let manifests = manifests().unwrap();
    for manifest in &manifests {
        let committed = fs::read_to_string(folder("yaml").join(manifest.file_name)).unwrap();
        assert!(
            committed == manifest.content,
            "{} is not what the types say: run `cargo run -p basalt-crds --bin generate-crds`",
            manifest.file_name
        );
    }
    assert_eq!(fs::read_dir(folder("yaml")).unwrap().count(), manifests.len(), "a stray file in crds/yaml");
}

#[test]
fn every_rule_has_words_that_name_the_field() {
    for manifest in manifests().unwrap() {
        let value: serde_json::Value = serde_saphyr::from_str(&manifest.content).unwrap();
        let mut rules = Vec::new();
        collect_rules(&value, &mut rules);
        assert!(rules.len() > 4);
        for rule in rules {
            let message = rule["message"].as_str().unwrap_or_else(|| panic!("no message: {rule}"));
            assert!(
                message.starts_with("spec.") || message.starts_with("metadata."),
                "names no field: {message}"
            );
        }
    }
}

fn collect_rules(value: &serde_json::Value, into: &mut Vec<serde_json::Value>) {
    match value {
        serde_json::Value::Object(object) => {
            for (key, value) in object {
                match value.as_array() {
                    Some(rules) if key == "x-kubernetes-validations" => into.extend(rules.iter().cloned()),
                    _ => collect_rules(value, into),
                }
            }
        }
        serde_json::Value::Array(array) => array.iter().for_each(|value| collect_rules(value, into)),
        _ => (),
    }
}

#[test]
fn the_examples_are_valid() {
    let read = |name: &str| {
        let text = fs::read_to_string(folder("examples").join(name)).unwrap();
        text.replace("${BASALT_STATE}", "/var/lib/basalt")
    };
    for number in 1..=3 {
        let node: StorageNode = serde_saphyr::from_str(&read(&format!("node-{number}.yaml"))).unwrap();
        assert_eq!(node.metadata.name, Some(format!("node-{number}")));
        assert_eq!(node.validate_cel().err().map(|errors| errors.to_string()), None);
    }
    let volume: Volume = serde_saphyr::from_str(&read("volume.yaml")).unwrap();
    assert_eq!(volume.validate_cel().err().map(|errors| errors.to_string()), None);
    assert!(volume.spec.size.bytes().unwrap() >= 300 << 20, "mkfs.xfs needs 300 MiB");
    let text = read("restore/snapshot.yaml");
    let (snapshot, restored) = text.split_once("---").unwrap();
    let snapshot: Snapshot = serde_saphyr::from_str(snapshot).unwrap();
    assert_eq!(snapshot.validate_cel().err().map(|errors| errors.to_string()), None);
    assert_eq!(Some(snapshot.spec.volume), volume.metadata.name);
    let restored: Volume = serde_saphyr::from_str(restored).unwrap();
    assert_eq!(restored.validate_cel().err().map(|errors| errors.to_string()), None);
    assert_eq!(restored.spec.source.map(|source| source.snapshot), snapshot.metadata.name);
}
