//! Removing versions, and comparing them, on every store.

use std::collections::BTreeMap;

use serde_json::json;

use super::tests::{each_store, latest, new_version, numbers_of};
use super::*;
use crate::ErrorKind;
use crate::storage::{Store, faulty_store};

const MODEL: AssetKind = AssetKind::Model;

fn reference(text: &str) -> Reference {
    text.parse().unwrap()
}

fn remove(store: &Store, text: &str, reason: &str) -> crate::Result<Version> {
    remove_version(store, &reference(text), reason)
}

#[test]
fn a_removed_version_is_hidden_and_says_why() {
    each_store(|store, folder| {
        for owner in ["a", "b", "c"] {
            publish(store, new_version(folder, owner, "x")).unwrap();
        }
        let removed = remove(store, "model:net@3", "  wrong labels ü ").unwrap();
        assert_eq!(removed.version, 3);
        assert_eq!(numbers_of(store), [1, 2]);
        assert_eq!(latest(store).version, 2);
        let error = get(store, &reference("model:net@3")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        let text = error.to_string();
        assert!(text.starts_with(&format!("model:net@3 was removed on {}", &now()[..10])), "{text}");
        assert!(text.ends_with("(wrong labels ü); its versions are 2, 1"), "{text}");
        // again is too late
        assert_eq!(remove(store, "model:net@3", "again").unwrap_err().to_string(), text);
        // manifest and files stay
        assert!(store.exists("registry/models/net/0000000003.json").unwrap());
        verify_version(store, &removed).unwrap();
        let listed = list_removed(store, MODEL).unwrap();
        assert_eq!(listed.len(), 1);
        assert_eq!((listed[0].0.version, listed[0].1.reason.as_str()), (3, "wrong labels ü"));
        assert!(list_removed(store, AssetKind::Data).unwrap().is_empty());
        // its number is not given again, also not to its owner
        assert_eq!(publish(store, new_version(folder, "c", "x")).unwrap().version, 4);
        assert_eq!(publish(store, new_version(folder, "d", "x")).unwrap().version, 5);
        // nor where nothing but the removal is left
        for key in ["registry/models/net/0000000005.json", "registry/models/net/0000000005.claim.json"] {
            store.delete(key).unwrap();
        }
        store.delete_folder("models/net/5").unwrap();
        store.put("registry/models/net/0000000005.removed.json", b"{}".to_vec()).unwrap();
        assert_eq!(publish(store, new_version(folder, "e", "x")).unwrap().version, 6);
    });
}

#[test]
fn a_name_of_which_all_is_removed_is_not_listed() {
    each_store(|store, folder| {
        publish(store, new_version(folder, "a", "x")).unwrap();
        remove(store, "model:net@1", "a test").unwrap();
        assert!(list_names(store, MODEL).unwrap().is_empty());
        assert_eq!(get(store, &reference("model:net")).unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(list_removed(store, MODEL).unwrap().len(), 1);
    });
}

#[test]
fn what_is_not_exactly_named_or_not_explained_is_not_removed() {
    each_store(|store, folder| {
        publish(store, new_version(folder, "a", "x")).unwrap();
        set_alias(store, &reference("model:net@1"), "champion").unwrap();
        for text in ["model:net", "model:net@champion"] {
            let error = remove(store, text, "why").unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config);
            assert!(error.to_string().contains("model:net@7"), "{error}");
        }
        for reason in ["", "  ", "a\nb", "a\u{1b}b"] {
            assert_eq!(remove(store, "model:net@1", reason).unwrap_err().kind(), ErrorKind::Config);
        }
        assert_eq!(remove(store, "model:net@2", "why").unwrap_err().kind(), ErrorKind::NotFound);
        let error = remove(store, "model:net@1", "why").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict);
        assert!(error.to_string().contains("model:net@1 is 'champion'"), "{error}");
        assert_eq!(numbers_of(store), [1]);
        remove_alias(store, MODEL, "net", "champion").unwrap();
        remove(store, "model:net@1", "why").unwrap();
        assert_eq!(set_alias(store, &reference("model:net@1"), "champion").unwrap_err().kind(), ErrorKind::NotFound);
        assert!(aliases(store, MODEL, "net").unwrap().is_empty());
    });
}

#[test]
fn removals_of_format_1_stay_readable_and_damage_is_named() {
    each_store(|store, folder| {
        publish(store, new_version(folder, "a", "x")).unwrap();
        publish(store, new_version(folder, "b", "x")).unwrap();
        let key = "registry/models/net/0000000001.removed.json";
        let good = r#"{"format_version":1,"created":"2026-01-01T00:00:00.000Z","reason":"two\nlines"}"#;
        store.put(key, good.as_bytes().to_vec()).unwrap();
        let text = get(store, &reference("model:net@1")).unwrap_err().to_string();
        assert_eq!(text, "model:net@1 was removed on 2026-01-01T00:00:00.000Z (two lines); its versions are 2");
        for bad in ["", "[]", r#"{"format_version":1,"created":"c"}"#, &good.replace(":1", ":2")] {
            store.put(key, bad.as_bytes().to_vec()).unwrap();
            for error in [get(store, &reference("model:net@1")).unwrap_err(), list_removed(store, MODEL).unwrap_err()] {
                assert_eq!(error.kind(), ErrorKind::Data, "{error}");
                assert!(error.to_string().contains(key), "{error}");
            }
            // it stays removed, whatever it says
            assert_eq!(numbers_of(store), [2]);
        }
        // an alias that was set by hand to what is removed says so
        store.put(key, good.as_bytes().to_vec()).unwrap();
        let entry = r#"{"format_version":1,"version":1,"created":"c","nonce":"n"}"#;
        store.put("registry/models/net/aliases/old/0000000001.json", entry.as_bytes().to_vec()).unwrap();
        let text = get(store, &reference("model:net@old")).unwrap_err().to_string();
        assert!(text.starts_with("model:net@old is version 1, which was removed on 2026-01-01T"), "{text}");
    });
}

#[test]
fn no_alias_names_what_is_removed_at_the_same_time() {
    let race = |store: &Store, folder: &std::path::Path| {
        for round in 1..=12 {
            let version = publish(store, new_version(folder, &format!("o{round}"), "x")).unwrap();
            let text = version.reference();
            let (removed, set) = std::thread::scope(|scope| {
                let removing = scope.spawn(|| remove(store, &text, "a race"));
                let setting = scope.spawn(|| set_alias(store, &reference(&text), "champion"));
                (removing.join().unwrap(), setting.join().unwrap())
            });
            let named = aliases(store, MODEL, "net").unwrap();
            match &removed {
                Ok(_) => assert_ne!(named.get("champion"), Some(&version.version), "{text}"),
                Err(error) => assert_eq!(error.kind(), ErrorKind::Conflict, "{error}"),
            }
            if removed.is_err() {
                set.unwrap();
                remove_alias(store, MODEL, "net", "champion").unwrap();
            }
        }
    };
    each_store(race);
    let folder = tempfile::tempdir().unwrap();
    race(&faulty_store(), folder.path());
}

#[test]
fn a_step_whose_version_is_removed_is_run_again() {
    each_store(|store, folder| {
        let version = publish(store, new_version(folder, "o", "x")).unwrap();
        let step = CachedStep {
            fingerprint: "00ff".to_owned(),
            run_id: "r".to_owned(),
            outputs: BTreeMap::from([("model".to_owned(), version.reference())]),
            metrics: serde_json::Value::Null,
        };
        StepCache::put(store, &step).unwrap();
        assert!(StepCache::get(store, "00ff").unwrap().is_some());
        remove(store, "model:net@1", "a test").unwrap();
        assert_eq!(StepCache::get(store, "00ff").unwrap(), None);
    });
}

#[test]
fn two_versions_are_compared_by_files_and_fields() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::in_memory();
    let first = publish(&store, new_version(folder.path(), "a", "x")).unwrap();
    let same = diff(&first, &first);
    assert!(same.fields.is_empty() && same.files.unchanged == 3);
    assert!(same.files.added.is_empty() && same.files.removed.is_empty() && same.files.changed.is_empty());
    let mut new = new_version(folder.path(), "b", "longer");
    new.files.retain(|(path, _)| path != "zz.txt");
    let added = folder.path().join("added");
    std::fs::write(&added, "1234").unwrap();
    new.files.push(("new.txt".to_owned(), added));
    new.description = "another".to_owned();
    new.tags = BTreeMap::from([("site".to_owned(), "here".to_owned())]);
    new.lineage.inputs.insert("images".to_owned(), "data:i@1".to_owned());
    new.metadata = json!({"loss": 0.25, "deep": {"list": [1, 2], "none": null}});
    let second = publish(&store, new).unwrap();
    let found = serde_json::to_value(diff(&first, &second)).unwrap();
    assert_eq!((&found["from"], &found["to"]), (&json!("model:net@1"), &json!("model:net@2")));
    let files = &found["files"];
    let entry = |version: &Version, path: &str| {
        serde_json::to_value(version.files.iter().find(|f| f.path == path).unwrap()).unwrap()
    };
    assert_eq!(files["added"], json!([entry(&second, "new.txt")]));
    assert_eq!(files["removed"], json!([entry(&first, "zz.txt")]));
    assert_eq!(files["unchanged"], 1);
    assert_eq!(files["changed"].as_array().unwrap().len(), 1);
    let changed = &files["changed"][0];
    assert_eq!(
        (&changed["path"], &changed["from"]["size"], &changed["to"]["size"]),
        (&json!("artifacts/a.bin"), &json!(1), &json!(6))
    );
    assert_eq!(
        found["fields"],
        json!([
            {"field": "description", "from": "a test", "to": "another"},
            {"field": "lineage.inputs.images", "to": "data:i@1"},
            {"field": "metadata.deep.list", "to": [1, 2]},
            {"field": "metadata.loss", "from": 0.5, "to": 0.25},
            {"field": "tags.site", "to": "here"},
            {"field": "tags.stage", "from": "test"},
        ])
    );
}
