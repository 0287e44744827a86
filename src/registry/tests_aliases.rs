//! Aliases, on every store and one that fails.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::tests::{each_store, new_version};
use super::*;
use crate::ErrorKind;
use crate::storage::{Store, faulty_store};

const MODEL: AssetKind = AssetKind::Model;

fn reference(text: &str) -> Reference {
    text.parse().unwrap()
}

/// Versions 1 to `count` of `model:net`.
fn publish_some(store: &Store, folder: &Path, count: u64) {
    for number in 1..=count {
        let version = publish(store, new_version(folder, &format!("o{number}"), "x")).unwrap();
        assert_eq!(version.version, number);
    }
}

#[test]
fn an_alias_is_set_moved_and_taken_away() {
    each_store(|store, folder| {
        publish_some(store, folder, 3);
        assert!(aliases(store, MODEL, "net").unwrap().is_empty());
        let (version, before) = set_alias(store, &reference("model:net@2"), "champion").unwrap();
        assert_eq!((version.version, before), (2, None));
        assert_eq!(get(store, &reference("model:net@champion")).unwrap(), version);
        // what is so already is not written again
        assert_eq!(set_alias(store, &reference("model:net@2"), "champion").unwrap(), (version, Some(2)));
        let history = "registry/models/net/aliases/champion";
        assert_eq!(store.list(history).unwrap().len(), 1);
        // a version may be named by another alias, or be the latest
        assert_eq!(set_alias(store, &reference("model:net@champion"), "best").unwrap().0.version, 2);
        assert_eq!(set_alias(store, &reference("model:net"), "champion").unwrap().1, Some(2));
        let expected = BTreeMap::from([("best".to_owned(), 2), ("champion".to_owned(), 3)]);
        assert_eq!(aliases(store, MODEL, "net").unwrap(), expected);
        assert_eq!(remove_alias(store, MODEL, "net", "champion").unwrap(), 3);
        assert_eq!(aliases(store, MODEL, "net").unwrap(), BTreeMap::from([("best".to_owned(), 2)]));
        let keys: Vec<String> = store.list(history).unwrap().into_iter().map(|o| o.key).collect();
        assert_eq!(keys, (1..=3).map(|n| format!("{history}/{n:010}.json")).collect::<Vec<_>>());
        // and it may come again
        set_alias(store, &reference("model:net@1"), "champion").unwrap();
        assert_eq!(get(store, &reference("model:net@champion")).unwrap().version, 1);
        // neither versions nor names are found where aliases lie
        assert_eq!(list_names(store, MODEL).unwrap(), ["net"]);
        assert_eq!(super::tests::numbers_of(store), [1, 2, 3]);
    });
}

#[test]
fn an_unknown_alias_is_answered_with_those_there_are() {
    each_store(|store, folder| {
        publish_some(store, folder, 2);
        let ask = |text: &str| get(store, &reference(text)).unwrap_err();
        assert_eq!(ask("model:net@champion").kind(), ErrorKind::NotFound);
        assert!(ask("model:net@champion").to_string().ends_with("its aliases are none"), "{}", ask("model:net@a"));
        set_alias(store, &reference("model:net@2"), "champion").unwrap();
        set_alias(store, &reference("model:net@1"), "old").unwrap();
        let error = ask("model:net@champino").to_string();
        assert!(error.contains("there is no model:net@champino in"), "{error}");
        assert!(error.ends_with("its aliases are 'champion' (2), 'old' (1)"), "{error}");
        assert!(ask("model:nett@champion").to_string().ends_with("the nearest are 'net'"));
        let error = remove_alias(store, MODEL, "net", "gone").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(error.to_string().contains("model:net has no alias 'gone': its aliases are 'champion' (2)"), "{error}");
        assert!(store.list("registry/models/net/aliases/gone").unwrap().is_empty());
        for (text, kind) in [("model:net@9", ErrorKind::NotFound), ("data:net@1", ErrorKind::NotFound)] {
            assert_eq!(set_alias(store, &reference(text), "a").unwrap_err().kind(), kind, "{text}");
        }
        for bad in ["latest", "v7", "7", "", "a/b", "../x"] {
            assert_eq!(
                set_alias(store, &reference("model:net@1"), bad).unwrap_err().kind(),
                ErrorKind::Config,
                "{bad}"
            );
            assert_eq!(remove_alias(store, MODEL, "net", bad).unwrap_err().kind(), ErrorKind::Config, "{bad}");
        }
        assert_eq!(aliases(store, MODEL, "../net").unwrap_err().kind(), ErrorKind::Config);
    });
}

#[test]
fn racing_moves_are_all_kept_in_one_order() {
    let race = |store: &Store, folder: &Path| {
        publish_some(store, folder, 8);
        std::thread::scope(|scope| {
            for number in 1..=8 {
                scope.spawn(move || {
                    for _ in 0..5 {
                        set_alias(store, &reference(&format!("model:net@{number}")), "champion").unwrap();
                    }
                });
            }
        });
        let history = "registry/models/net/aliases/champion";
        let moves: Vec<serde_json::Value> = store
            .list(history)
            .unwrap()
            .iter()
            .enumerate()
            .map(|(at, object)| {
                assert_eq!(object.key, format!("{history}/{:010}.json", at + 1));
                serde_json::from_slice(&store.get(&object.key).unwrap().unwrap()).unwrap()
            })
            .collect();
        let named: BTreeSet<u64> = moves.iter().map(|m| m["version"].as_u64().unwrap()).collect();
        assert_eq!(named, (1..=8).collect::<BTreeSet<_>>());
        let nonces: BTreeSet<&str> = moves.iter().map(|m| m["nonce"].as_str().unwrap()).collect();
        assert_eq!(nonces.len(), moves.len());
        let last = moves.last().unwrap()["version"].as_u64().unwrap();
        assert_eq!(get(store, &reference("model:net@champion")).unwrap().version, last);
    };
    each_store(race);
    let folder = tempfile::tempdir().unwrap();
    race(&faulty_store(), folder.path());
}

#[test]
fn moves_of_format_1_stay_readable_and_damage_is_named() {
    each_store(|store, folder| {
        publish_some(store, folder, 1);
        let key = "registry/models/net/aliases/champion/0000000004.json";
        let good = r#"{"format_version":1,"version":1,"created":"2026-01-01T00:00:00.000Z","nonce":"n"}"#;
        store.put(key, good.as_bytes().to_vec()).unwrap();
        assert_eq!(get(store, &reference("model:net@champion")).unwrap().version, 1);
        store.put(key, good.replace("\"version\":1,\"c", "\"version\":null,\"c").into_bytes()).unwrap();
        assert_eq!(get(store, &reference("model:net@champion")).unwrap_err().kind(), ErrorKind::NotFound);
        let bad =
            ["{", r#"{"format_version":1,"created":"c","nonce":"n"}"#, &good.replace("format_version\":1", "f\":1")];
        for bad in bad {
            store.put(key, bad.as_bytes().to_vec()).unwrap();
            for error in [
                get(store, &reference("model:net@champion")).unwrap_err(),
                aliases(store, MODEL, "net").unwrap_err(),
                set_alias(store, &reference("model:net@1"), "champion").unwrap_err(),
            ] {
                assert_eq!(error.kind(), ErrorKind::Data, "{error}");
                assert!(error.to_string().contains(key), "{error}");
            }
        }
        // what no program of this kind has written is no alias
        store.put("registry/models/net/aliases/latest/0000000001.json", good.as_bytes().to_vec()).unwrap();
        store.delete(key).unwrap();
        assert!(aliases(store, MODEL, "net").unwrap().is_empty());
    });
}

#[test]
fn a_finished_step_is_remembered_by_numbers_only() {
    each_store(|store, folder| {
        publish_some(store, folder, 1);
        set_alias(store, &reference("model:net@1"), "champion").unwrap();
        let step = |output: &str| CachedStep {
            fingerprint: "00ff".to_owned(),
            run_id: "r".to_owned(),
            outputs: BTreeMap::from([("model".to_owned(), output.to_owned())]),
            metrics: serde_json::Value::Null,
        };
        let error = StepCache::put(store, &step("model:net@champion")).unwrap_err();
        assert!(error.to_string().contains("'model:net@champion' does not name an exact version"), "{error}");
        // nor is an entry used that somebody has edited so
        let edited = serde_json::json!({"format_version": 1, "fingerprint": "00ff", "run_id": "r",
            "outputs": {"model": "model:net@champion"}, "metrics": null});
        store.put("cache/steps/00ff.json", edited.to_string().into_bytes()).unwrap();
        assert_eq!(StepCache::get(store, "00ff").unwrap(), None);
        let exact = get(store, &reference("model:net@champion")).unwrap().reference();
        StepCache::put(store, &step(&exact)).unwrap();
        assert_eq!(StepCache::get(store, "00ff").unwrap(), Some(step("model:net@1")));
    });
}
