//! Every test runs against a folder and against memory.

use std::collections::BTreeMap;
use std::path::Path;

use super::*;
use crate::ErrorKind;
use crate::storage::{FileDigest, Store, sha256_hex};

pub(super) fn each_store(test: impl Fn(&Store, &Path)) {
    let folder = tempfile::tempdir().unwrap();
    test(&Store::open(folder.path().join("store").to_str().unwrap()).unwrap(), folder.path());
    let folder = tempfile::tempdir().unwrap();
    test(&Store::in_memory(), folder.path());
}

/// A model of three files whose content depends on `content`.
pub(super) fn new_version(folder: &Path, owner: &str, content: &str) -> NewVersion {
    let source = folder.join(format!("source-{owner}-{content}"));
    std::fs::create_dir_all(source.join("artifacts")).unwrap();
    std::fs::write(source.join("MLmodel"), "flavors: {}\n").unwrap();
    std::fs::write(source.join("artifacts/a.bin"), content).unwrap();
    std::fs::write(source.join("zz.txt"), "").unwrap();
    NewVersion {
        kind: AssetKind::Model,
        name: "net".to_owned(),
        description: "a test".to_owned(),
        tags: BTreeMap::from([("stage".to_owned(), "test".to_owned())]),
        files: folder_files(&source).unwrap(),
        owner: owner.to_owned(),
        lineage: Lineage { run_id: "r".to_owned(), ..Lineage::default() },
        metadata: serde_json::json!({"loss": 0.5}),
    }
}

pub(super) fn numbers_of(store: &Store) -> Vec<u64> {
    list_versions(store, AssetKind::Model, "net").unwrap().iter().map(|v| v.version).collect()
}

pub(super) fn latest(store: &Store) -> Version {
    get(store, &Reference::parse("model:net", None).unwrap()).unwrap()
}

#[test]
fn a_published_version_is_found_and_verified() {
    each_store(|store, folder| {
        let version = publish(store, new_version(folder, "o", "x")).unwrap();
        assert_eq!((version.reference().as_str(), version.total_size()), ("model:net@1", 13));
        assert_eq!(
            version.files.iter().map(|f| f.path.as_str()).collect::<Vec<_>>(),
            ["MLmodel", "artifacts/a.bin", "zz.txt"]
        );
        let mut lines: Vec<_> = [("MLmodel", "flavors: {}\n"), ("artifacts/a.bin", "x"), ("zz.txt", "")]
            .map(|(p, c)| format!("{} {} {p}\n", sha256_hex(c.as_bytes()), c.len()))
            .to_vec();
        lines.sort();
        assert_eq!(version.digest, sha256_hex(lines.concat().as_bytes()));
        assert_eq!(version.uri(store), store.uri_of("models/net/1"));
        assert_eq!(latest(store), version);
        verify_version(store, &version).unwrap();
        assert_eq!(list_names(store, AssetKind::Model).unwrap(), ["net"]);
        assert!(list_names(store, AssetKind::Data).unwrap().is_empty());
        assert!(store.exists("registry/models/net/0000000001.json").unwrap());
        if store.uri().starts_with("file:") {
            let local = open_local(store, &version).unwrap();
            assert_eq!(std::fs::read_to_string(local.join("artifacts/a.bin")).unwrap(), "x");
        } else {
            assert!(open_local(store, &version).unwrap_err().to_string().contains("MEDTUNE_CACHE_DIR"));
        }
    });
}

#[test]
fn sixteen_threads_publish_contiguous_versions() {
    let race = |store: &Store, folder: &Path| {
        std::thread::scope(|scope| {
            for thread in 0..16 {
                scope.spawn(move || {
                    for i in 0..5 {
                        publish(store, new_version(folder, &format!("{thread}-{i}"), "x")).unwrap();
                    }
                });
            }
        });
        assert_eq!(numbers_of(store), (1..=80).collect::<Vec<u64>>());
        let owners: std::collections::BTreeSet<_> =
            list_versions(store, AssetKind::Model, "net").unwrap().into_iter().map(|v| v.owner).collect();
        assert_eq!(owners.len(), 80);
    };
    each_store(race);
    let folder = tempfile::tempdir().unwrap();
    race(&crate::storage::faulty_store(), folder.path());
}

#[test]
fn the_same_owner_gets_the_same_version_also_when_racing() {
    each_store(|store, folder| {
        let (o, p) = (new_version(folder, "o", "x"), new_version(folder, "p", "x"));
        let first = publish(store, o.clone()).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    assert_eq!(publish(store, o.clone()).unwrap(), first);
                    assert_eq!(publish(store, p.clone()).unwrap().version, 2);
                });
            }
        });
        assert_eq!(numbers_of(store), [1, 2]);
        // other files are another version, also of the same owner
        assert_eq!(publish(store, new_version(folder, "o", "y")).unwrap().version, 3);
        assert_eq!(publish(store, new_version(folder, "o", "x")).unwrap().version, 1);
        // a version that has lost a file is not given again
        store.delete("models/net/1/zz.txt").unwrap();
        assert_eq!(publish(store, new_version(folder, "o", "x")).unwrap().version, 4);
    });
}

#[test]
fn what_a_killed_publisher_leaves_is_not_listed_and_is_taken_up_by_its_owner() {
    each_store(|store, folder| {
        let claim = |owner: &str| {
            format!(r#"{{"format_version":1,"owner":"{owner}","created":"2026-01-01T00:00:00Z","nonce":"n"}}"#)
                .into_bytes()
        };
        store.put("registry/models/net/0000000001.claim.json", claim("killed")).unwrap();
        store.put("models/net/1/artifacts/old.bin", b"partial".to_vec()).unwrap();
        // the store's own name for a file that is being written
        let staged = store.local_path("models/net/1").map(|f| f.join("artifacts/a.bin#1"));
        if let Some(staged) = &staged {
            std::fs::write(staged, "partial").unwrap();
        }
        assert!(numbers_of(store).is_empty() && list_names(store, AssetKind::Model).unwrap().is_empty());
        let missing = get(store, &Reference::parse("model:net@1", None).unwrap()).unwrap_err();
        assert_eq!(missing.kind(), ErrorKind::NotFound);

        assert_eq!(publish(store, new_version(folder, "other", "x")).unwrap().version, 2);
        assert!(store.exists("models/net/1/artifacts/old.bin").unwrap());
        let version = publish(store, new_version(folder, "killed", "x")).unwrap();
        assert_eq!(version.version, 1);
        verify_version(store, &version).unwrap();
        assert!(staged.is_none_or(|s| !s.exists()));
        assert_eq!(numbers_of(store), [1, 2]);
    });
}

#[test]
fn files_that_nobody_has_reserved_are_never_removed() {
    each_store(|store, folder| {
        store.put("models/net/1/precious", b"x".to_vec()).unwrap();
        let error = publish(store, new_version(folder, "o", "x")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict);
        assert!(store.exists("models/net/1/precious").unwrap() && numbers_of(store).is_empty());
    });
}

#[test]
fn a_failed_upload_leaves_nothing_visible_and_is_repeated_under_its_number() {
    each_store(|store, folder| {
        let mut new = new_version(folder, "o", "x");
        new.files.push(("zzz".to_owned(), folder.join("missing")));
        let error = publish(store, new).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(error.to_string().starts_with("publish model:net: cannot open"), "{error}");
        assert!(store.list("models").unwrap().is_empty() && numbers_of(store).is_empty());
        assert_eq!(publish(store, new_version(folder, "o", "x")).unwrap().version, 1);
    });
}

#[test]
fn versions_that_belong_together_are_visible_together_or_not_at_all() {
    each_store(|store, folder| {
        let good = || NewVersion { name: "other".to_owned(), ..new_version(folder, "o1", "x") };
        let mut bad = new_version(folder, "o2", "y");
        bad.files.push(("gone.bin".to_owned(), folder.join("gone.bin")));
        let error = publish_all(store, vec![good(), bad.clone()]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(error.to_string().starts_with("publish model:net: "), "{error}");
        assert!(list_names(store, AssetKind::Model).unwrap().is_empty());
        assert!(store.list("models").unwrap().is_empty(), "files were left");
        bad.files.pop();
        let both = publish_all(store, vec![good(), bad.clone()]).unwrap();
        assert_eq!(both.iter().map(Version::reference).collect::<Vec<_>>(), ["model:other@1", "model:net@1"]);
        assert_eq!(publish_all(store, vec![good(), bad]).unwrap(), both);
        assert!(publish_all(store, Vec::new()).unwrap().is_empty());
    });
}

#[test]
fn changed_missing_and_extra_files_are_named() {
    each_store(|store, folder| {
        let version = publish(store, new_version(folder, "o", "x")).unwrap();
        store.put("models/net/1/registered_model_meta", b"x".to_vec()).unwrap();
        store.put("models/net/1/code/__pycache__/a.pyc", b"x".to_vec()).unwrap();
        verify_version(store, &version).unwrap();
        store.put("models/net/1/artifacts/a.bin", b"y".to_vec()).unwrap();
        store.put("models/net/1/evil.py", b"x".to_vec()).unwrap();
        store.delete("models/net/1/zz.txt").unwrap();
        let error = verify_version(store, &version).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Data);
        assert_eq!(
            error.to_string(),
            "model:net@1 is not what was published: changed 'artifacts/a.bin'; missing 'zz.txt'; extra 'evil.py'; \
             restore it or publish a new version"
        );
        assert_eq!(pull(store, &version, &folder.join("out")).unwrap_err().kind(), ErrorKind::Data);
        if let Some(local) = store.local_path("models/net/1") {
            std::os::unix::fs::symlink("/etc/passwd", local.join("link")).unwrap();
            let error = verify_version(store, &version).unwrap_err();
            assert!(error.kind() == ErrorKind::Data && error.to_string().contains("link"), "{error}");
        }
        assert!(std::fs::read_dir(folder).unwrap().all(|e| !e.unwrap().file_name().to_string_lossy().contains("out")));
    });
}

#[test]
fn a_pull_is_whole_and_never_replaces_anything() {
    each_store(|store, folder| {
        let version = publish(store, new_version(folder, "o", "x")).unwrap();
        let dest = folder.join("new/out");
        for _ in 0..2 {
            pull(store, &version, &dest).unwrap();
            assert_eq!(std::fs::read_to_string(dest.join("artifacts/a.bin")).unwrap(), "x");
        }
        std::fs::write(dest.join("note"), "mine").unwrap();
        let error = pull(store, &version, &dest).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict);
        assert!(error.to_string().contains("extra 'note'"), "{error}");
        assert_eq!(std::fs::read_to_string(dest.join("note")).unwrap(), "mine");
        let empty = folder.join("empty");
        std::fs::create_dir(&empty).unwrap();
        pull(store, &version, &empty).unwrap();
        assert!(empty.join("MLmodel").is_file());
        assert_eq!(pull(store, &version, &dest.join("note")).unwrap_err().kind(), ErrorKind::Conflict);
    });
}

#[test]
fn no_path_leads_out_of_its_folder() {
    each_store(|store, folder| {
        for bad in ["../x", "/etc/x", "a/../../x", "a//b", "a b", ""] {
            let mut new = new_version(folder, "o", "x");
            new.files[0].0 = bad.to_owned();
            assert_eq!(publish(store, new).unwrap_err().kind(), ErrorKind::Config, "{bad}");
        }
        for (a, b) in [("a", "a"), ("a", "a/b")] {
            let mut new = new_version(folder, "o", "x");
            (new.files[0].0, new.files[1].0) = (a.to_owned(), b.to_owned());
            assert_eq!(publish(store, new).unwrap_err().kind(), ErrorKind::Config, "{a} {b}");
        }
        let mut new = new_version(folder, "o", "x");
        new.name = "../net".to_owned();
        assert_eq!(publish(store, new).unwrap_err().kind(), ErrorKind::Config);

        let mut version = publish(store, new_version(folder, "o", "x")).unwrap();
        version.files[0].path = "../../x".to_owned();
        assert_eq!(pull(store, &version, &folder.join("out")).unwrap_err().kind(), ErrorKind::Config);
        store.put("registry/models/net/0000000001.json", serde_json::to_vec(&version).unwrap()).unwrap();
        let error = get(store, &"model:net@1".parse().unwrap()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Data);
        assert!(error.to_string().contains("is damaged"), "{error}");
    });
    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("/etc/passwd", folder.path().join("link")).unwrap();
    assert_eq!(folder_files(folder.path()).unwrap_err().kind(), ErrorKind::Data);
}

#[test]
fn what_is_not_there_is_answered_with_what_is() {
    let store = Store::in_memory();
    let folder = tempfile::tempdir().unwrap();
    let ask = |text: &str| get(&store, &text.parse().unwrap()).unwrap_err();
    assert!(ask("model:net@1").to_string().contains("no model has been published yet"));
    publish(&store, new_version(folder.path(), "a", "x")).unwrap();
    publish(&store, new_version(folder.path(), "b", "x")).unwrap();
    assert!(ask("model:net@7").to_string().ends_with("its versions are 2, 1"), "{}", ask("model:net@7"));
    assert!(ask("model:nett").to_string().ends_with("the nearest are 'net'"), "{}", ask("model:nett"));
    assert_eq!(ask("data:net").kind(), ErrorKind::NotFound);
}

#[test]
fn manifests_of_format_1_stay_readable() {
    let store = Store::in_memory();
    let sha256 = sha256_hex(b"x");
    let digest = sha256_hex(format!("{sha256} 1 images.tsv\n").as_bytes());
    let manifest = format!(
        r#"{{"format_version":1,"kind":"data","name":"d","version":3,"created":"2026-01-01T00:00:00.000Z","description":"",
        "tags":{{}},"files":[{{"path":"images.tsv","size":1,"sha256":"{sha256}"}}],"digest":"{digest}","prefix":"data/d/3",
        "owner":"o","lineage":{{"run_id":"r","step":null,"code_version":"c","inputs":{{"a":"data:b@1"}}}},"metadata":null}}"#
    );
    store.put("registry/data/d/0000000003.json", manifest.clone().into_bytes()).unwrap();
    let version = get(&store, &"data:d@latest".parse().unwrap()).unwrap();
    assert_eq!(version.files[0].digest(), FileDigest { size: 1, sha256 });
    let newer = manifest.replace(r#""format_version":1"#, r#""format_version":2"#);
    store.put("registry/data/d/0000000003.json", newer.into_bytes()).unwrap();
    let error = get(&store, &"data:d@3".parse().unwrap()).unwrap_err();
    assert!(error.to_string().contains("a newer medtune is needed"), "{error}");
}

#[test]
fn a_cached_step_counts_only_while_its_outputs_exist() {
    each_store(|store, folder| {
        assert_eq!(StepCache::get(store, "00ff").unwrap(), None);
        let version = publish(store, new_version(folder, "o", "x")).unwrap();
        let step = CachedStep {
            fingerprint: "00ff".to_owned(),
            run_id: "r".to_owned(),
            outputs: BTreeMap::from([("model".to_owned(), version.reference())]),
            metrics: serde_json::json!({"accuracy": 0.1 + 0.2}),
        };
        StepCache::put(store, &step).unwrap();
        assert_eq!(StepCache::get(store, "00ff").unwrap(), Some(step.clone()));
        store.delete("models/net/1/zz.txt").unwrap();
        assert_eq!(StepCache::get(store, "00ff").unwrap(), None);
        store.put("models/net/1/zz.txt", Vec::new()).unwrap();
        assert!(StepCache::get(store, "00ff").unwrap().is_some());
        store.delete("registry/models/net/0000000001.json").unwrap();
        assert_eq!(StepCache::get(store, "00ff").unwrap(), None);
        store.put("cache/steps/00ff.json", b"{".to_vec()).unwrap();
        assert_eq!(StepCache::get(store, "00ff").unwrap(), None);
        assert_eq!(StepCache::get(store, "../x").unwrap_err().kind(), ErrorKind::Config);
        let vague = CachedStep { outputs: BTreeMap::from([("a".to_owned(), "model:net".to_owned())]), ..step };
        assert_eq!(StepCache::put(store, &vague).unwrap_err().kind(), ErrorKind::Internal);
    });
}
