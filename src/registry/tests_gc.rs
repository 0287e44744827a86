//! Cleaning up: whatever a store holds, versions stay whole and debris goes.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use super::tests::{each_store, new_version, numbers_of};
use super::*;
use crate::ErrorKind;
use crate::storage::{Store, faulty_store};

const MODEL: AssetKind = AssetKind::Model;
const ALL: GcOptions = GcOptions { older_than: Duration::ZERO, dry_run: false };
const HASH: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

fn reference(text: &str) -> Reference {
    text.parse().unwrap()
}

fn claim(store: &Store, number: u64, owner: &str, lock: Option<&str>) {
    let claim = serde_json::json!({"format_version": 1, "owner": owner, "created": "2026-01-01T00:00:00Z",
        "nonce": "n", "lock": lock});
    store.put(&format!("registry/models/net/{number:010}.claim.json"), claim.to_string().into_bytes()).unwrap();
}

fn keys(store: &Store) -> Vec<String> {
    store.list("").unwrap().into_iter().map(|o| o.key).filter(|key| !key.starts_with(".locks/")).collect()
}

fn removed(report: &GcReport) -> Vec<(DebrisKind, &str, u64, u64)> {
    report.removed.iter().map(|d| (d.kind, d.key.as_str(), d.files, d.bytes)).collect()
}

/// Writes a file of a folder store that no store would write; other stores cannot hold it.
fn write_raw(store: &Store, key: &str) -> bool {
    let Some(path) = store.local_path("x").map(|x| x.with_file_name(key)) else { return false };
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, "raw").unwrap();
    true
}

/// Makes a file of a folder store look as if it was written some hours ago.
fn set_age(store: &Store, key: &str, hours: u64) {
    let path = store.local_path("x").unwrap().with_file_name(key);
    let then = SystemTime::now() - Duration::from_secs(hours * 3600);
    std::fs::File::options().write(true).open(path).unwrap().set_modified(then).unwrap();
}

/// Numbers that look random and are the same each time.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

/// Fills a store: versions in every state, and whatever else is found in stores. Returns the keys of the debris.
fn fill(store: &Store, folder: &Path, dice: &mut Dice) -> Vec<String> {
    let mut debris = Vec::new();
    let put = |key: String, debris: &mut Vec<String>| {
        store.put(&key, b"debris".to_vec()).unwrap();
        debris.push(key);
    };
    for number in 1..=6 {
        let state = dice.below(5);
        if state < 3 {
            let version = publish(store, new_version(folder, &format!("o{number}"), "x")).unwrap();
            assert_eq!(version.version, number);
        }
        match state {
            0 => {}
            1 => {
                put(format!("models/net/{number}/evil.py"), &mut debris);
                put(format!("models/net/{number}/artifacts/deep/er.bin"), &mut debris);
                store.put(&format!("models/net/{number}/registered_model_meta"), b"x".to_vec()).unwrap();
                store.put(&format!("models/net/{number}/code/__pycache__/a.pyc"), b"x".to_vec()).unwrap();
                if write_raw(store, &format!("models/net/{number}/artifacts/a.bin#1")) {
                    debris.push(format!("models/net/{number}/artifacts/a.bin#1"));
                }
            }
            2 => {
                let text = format!("model:net@{number}");
                let version = remove_version(store, &reference(&text), "a test").unwrap();
                debris.extend(version.files.iter().map(|f| version.key(&f.path)));
                let step = serde_json::json!({"format_version": 1, "fingerprint": "0f", "run_id": "r",
                    "outputs": {"model": text}, "metrics": null});
                let key = format!("cache/steps/0f{number}.json");
                store.put(&key, step.to_string().into_bytes()).unwrap();
                debris.push(key);
            }
            3 => claim(store, number, &format!("o{number}"), None),
            _ => {
                claim(store, number, &format!("o{number}"), Some("model/other/first"));
                put(format!("models/net/{number}/artifacts/half.bin"), &mut debris);
                if write_raw(store, &format!("models/net/{number}/MLmodel#1")) {
                    debris.push(format!("models/net/{number}/MLmodel#1"));
                }
            }
        }
    }
    for hash in [HASH.to_owned(), HASH.replace('0', "f")] {
        if dice.below(2) == 0 {
            put(format!("checkpoints/{hash}/step-00000001/weights.safetensors"), &mut debris);
            put(format!("checkpoints/{hash}/best-1.safetensors"), &mut debris);
        }
    }
    for key in ["registry/models/net/0000000009.json#1", "runs/R/.run.json.00112233445566778899aabbccddeeff.partial"] {
        if dice.below(2) == 0 && write_raw(store, key) {
            set_age(store, key, 25);
            debris.push(key.to_owned());
        }
    }
    debris
}

#[test]
fn versions_stay_whole_and_all_debris_goes() {
    let check = |store: &Store, folder: &Path| {
        static SEED: AtomicU64 = AtomicU64::new(1);
        let mut dice = Dice(SEED.fetch_add(1, Ordering::Relaxed));
        // what is not this program's, or still good
        let others =
            ["data/mine/7/a", "models/net/notes.txt", "models/net/007/x", "checkpoints/mine/x", "cache/begun/a.txt"];
        for key in others {
            store.put(key, b"others".to_vec()).unwrap();
        }
        let debris = fill(store, folder, &mut dice);
        let before = keys(store);
        let versions = list_versions(store, MODEL, "net").unwrap();

        let dry = gc(store, &GcOptions { dry_run: true, ..ALL }).unwrap();
        assert_eq!(keys(store), before, "a dry run removed something");
        let report = gc(store, &ALL).unwrap();
        assert_eq!((&report.removed, &report.kept), (&dry.removed, &dry.kept));
        assert!(dry.dry_run && !report.dry_run);
        assert_eq!(report.files(), debris.len() as u64, "{debris:?} {report:?}");

        let kept: Vec<String> = before.into_iter().filter(|key| !debris.contains(key)).collect();
        assert_eq!(keys(store), kept);
        for path in debris.iter().filter_map(|key| store.local_path("x").map(|x| x.with_file_name(key))) {
            assert!(!path.exists(), "{}", path.display());
        }
        assert_eq!(list_versions(store, MODEL, "net").unwrap(), versions);
        for version in &versions {
            verify_version(store, version).unwrap();
        }
        let again = gc(store, &ALL).unwrap();
        assert!(again.removed.is_empty(), "{again:?}");
        assert_eq!(again.kept.iter().map(|k| k.key.as_str()).collect::<Vec<_>>(), ["data/mine"]);
        // whoever was interrupted goes on with its number, whoever was removed or is new gets the next
        let claimed: Vec<u64> =
            (1..=6).filter(|n| !store.exists(&format!("registry/models/net/{n:010}.json")).unwrap()).collect();
        for number in claimed {
            let version = publish(store, new_version(folder, &format!("o{number}"), "x")).unwrap();
            assert_eq!(version.version, number);
            verify_version(store, &version).unwrap();
        }
        assert_eq!(publish(store, new_version(folder, "new", "x")).unwrap().version, 7);
    };
    for _ in 0..12 {
        each_store(check);
        let folder = tempfile::tempdir().unwrap();
        check(&faulty_store(), folder.path());
    }
}

#[test]
fn the_youngest_file_of_a_folder_decides() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().join("store").to_str().unwrap()).unwrap();
    publish(&store, new_version(folder.path(), "o", "x")).unwrap();
    publish(&store, new_version(folder.path(), "p", "x")).unwrap();
    remove_version(&store, &reference("model:net@2"), "a test").unwrap();
    claim(&store, 3, "q", None);
    let (old, young) = ("models/net/3/a", "models/net/3/b");
    let (best, checkpoint) = (format!("checkpoints/{HASH}/best"), format!("checkpoints/{HASH}/complete.json"));
    let stray = "models/net/1/stray";
    for key in [old, young, &best, &checkpoint, stray] {
        store.put(key, b"12345".to_vec()).unwrap();
    }
    let age = |key: &str, hours: u64| set_age(&store, key, hours);
    let sweep =
        |hours: u64| gc(&store, &GcOptions { older_than: Duration::from_secs(hours * 3600), dry_run: true }).unwrap();
    let checkpoints = format!("checkpoints/{HASH}");
    let all = ["models/net/1/stray", "models/net/2", "models/net/3", checkpoints.as_str()];
    assert!(sweep(1).removed.is_empty());
    assert_eq!(sweep(1).kept.iter().map(|k| k.key.as_str()).collect::<Vec<_>>(), all);
    age(old, 50);
    age(&best, 50);
    age("models/net/2/MLmodel", 50);
    assert!(sweep(24).removed.is_empty());
    age(&checkpoint, 30);
    age(stray, 20);
    for file in ["MLmodel", "artifacts/a.bin", "zz.txt"] {
        age(&format!("models/net/2/{file}"), 40);
    }
    assert_eq!(sweep(24).removed.iter().map(|d| d.key.as_str()).collect::<Vec<_>>(), [all[3]]);
    assert_eq!(removed(&sweep(10))[0], (DebrisKind::Stray, stray, 1, 5));
    // the removal is young, so readers that have found the version may still be at work
    age("registry/models/net/0000000002.removed.json", 40);
    age(young, 25);
    let report = gc(&store, &GcOptions { older_than: Duration::from_secs(24 * 3600), dry_run: false }).unwrap();
    let expected = [
        (DebrisKind::Removed, "models/net/2", 3, 13),
        (DebrisKind::Unfinished, "models/net/3", 2, 10),
        (DebrisKind::Checkpoints, all[3], 2, 10),
    ];
    assert_eq!(removed(&report), expected);
    assert_eq!((report.files(), report.bytes()), (7, 33));
    assert_eq!(report.kept, [Kept { key: stray.to_owned(), reason: "it was written too recently".to_owned() }]);
    // and no empty folder is left
    assert!(!store.local_path("models/net/3").unwrap().exists());
}

#[test]
fn what_is_being_published_stays() {
    each_store(|store, folder| {
        // two that belong together wait at one lock: both claims say which
        let mut bad = new_version(folder, "o/2", "x");
        bad.files.push(("gone".to_owned(), folder.join("gone")));
        let good = NewVersion { name: "other".to_owned(), ..new_version(folder, "o/1", "x") };
        publish_all(store, vec![good.clone(), bad.clone()]).unwrap_err();
        claim(store, 2, "older", None);
        let half = ["models/other/1/half", "models/net/1/half", "models/net/2/half"];
        for key in half {
            store.put(key, b"x".to_vec()).unwrap();
        }
        let folders = ["models/net/1", "models/net/2", "models/other/1"];
        {
            let _publishing = store.lock("model/other/o/1").unwrap();
            let report = gc(store, &ALL).unwrap();
            assert_eq!(removed(&report), [(DebrisKind::Unfinished, folders[1], 1, 1)]);
            let kept: Vec<_> = report.kept.iter().map(|k| (k.key.as_str(), k.reason.as_str())).collect();
            assert_eq!(kept, [(folders[0], "it is being published"), (folders[2], "it is being published")]);
        }
        store.put(half[2], b"x".to_vec()).unwrap();
        {
            // a claim of an older program does not say its lock: it is the owner's own
            let _publishing = store.lock("model/net/older").unwrap();
            let report = gc(store, &GcOptions { dry_run: true, ..ALL }).unwrap();
            assert_eq!(report.removed.iter().map(|d| d.key.as_str()).collect::<Vec<_>>(), [folders[0], folders[2]]);
        }
        assert_eq!(gc(store, &ALL).unwrap().files(), 3);
        bad.files.pop();
        let both = publish_all(store, vec![good, bad]).unwrap();
        assert_eq!(both.iter().map(Version::reference).collect::<Vec<_>>(), ["model:other@1", "model:net@1"]);
    });
}

#[test]
fn an_owner_that_comes_back_waits_until_its_old_files_are_gone() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().join("store").to_str().unwrap()).unwrap();
    for number in 1..=5 {
        let owner = format!("o{number}");
        claim(&store, number, &owner, None);
        // many files before the one that the owner is going to write again
        let local = store.local_path(&format!("models/net/{number}")).unwrap();
        std::fs::create_dir_all(&local).unwrap();
        for file in (0..2000).map(|n| format!("junk-{n:04}")).chain(["zz.txt".to_owned()]) {
            std::fs::write(local.join(file), "").unwrap();
        }
        let version = std::thread::scope(|scope| {
            let cleaning = scope.spawn(|| gc(&store, &ALL).unwrap());
            while local.join("junk-0010").exists() && !cleaning.is_finished() {
                std::hint::spin_loop();
            }
            let version = publish(&store, new_version(folder.path(), &owner, "x")).unwrap();
            assert_eq!(cleaning.join().unwrap().files(), 2001);
            version
        });
        assert_eq!(version.version, number);
        verify_version(&store, &version).unwrap();
    }
}

struct Counted<'a>(&'a AtomicUsize);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn publishers_and_cleaners_do_not_disturb_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let open = || Store::open(path.to_str().unwrap()).unwrap();
    let ended = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (ended, folder) = (&ended, folder.path());
            scope.spawn(move || {
                // counted also when the thread panics, or the cleaners would go on for ever
                let _ended = Counted(ended);
                let store = open();
                for i in 0..12 {
                    let mut new = new_version(folder, &format!("{thread}-{i}"), "x");
                    // one attempt in three fails half-way and is done again
                    new.files.push(("zzz".to_owned(), folder.join("gone")));
                    if i % 3 == 0 {
                        publish(&store, new.clone()).unwrap_err();
                    }
                    new.files.pop();
                    publish(&store, new).unwrap();
                }
            });
        }
        for _ in 0..2 {
            let ended = &ended;
            scope.spawn(move || {
                let store = open();
                while ended.load(Ordering::SeqCst) < 4 {
                    gc(&store, &ALL).unwrap();
                }
            });
        }
    });
    let store = open();
    assert_eq!(numbers_of(&store), (1..=48).collect::<Vec<u64>>());
    for version in list_versions(&store, MODEL, "net").unwrap() {
        verify_version(&store, &version).unwrap();
    }
    assert!(gc(&store, &ALL).unwrap().removed.is_empty());
}

#[test]
fn a_run_that_goes_on_here_keeps_checkpoints() {
    each_store(|store, _| {
        let key = format!("checkpoints/{HASH}/step-00000001/complete.json");
        store.put(&key, b"x".to_vec()).unwrap();
        let mut record = RunRecord::start("R", "job", "Finetune", serde_json::Value::Null);
        record.save(store).unwrap();
        let report = gc(store, &ALL).unwrap();
        assert!(report.removed.is_empty(), "{report:?}");
        let reason = "run R is going on and may need it".to_owned();
        assert_eq!(report.kept, [Kept { key: format!("checkpoints/{HASH}"), reason }]);
        record.finish(Duration::from_secs(1), None);
        record.save(store).unwrap();
        assert_eq!(gc(store, &ALL).unwrap().files(), 1);
        assert_eq!(keys(store), ["runs/R/run.json"]);
        // one that was killed keeps nothing
        store.put(&key, b"x".to_vec()).unwrap();
        let mut killed = RunRecord::start("K", "job", "Finetune", serde_json::Value::Null);
        killed.host.process = "another boot/1".to_owned();
        killed.save(store).unwrap();
        assert_eq!(gc(store, &ALL).unwrap().files(), 1);
    });
}

#[test]
fn a_writer_that_may_be_alive_keeps_its_temporary_file() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().to_str().unwrap()).unwrap();
    publish(&store, new_version(folder.path(), "o", "x")).unwrap();
    let (young, old) = ("registry/models/net/0000000002.claim.json#1", "cache/steps/00ff.json#3");
    for key in [young, old] {
        assert!(write_raw(&store, key));
    }
    set_age(&store, young, 23);
    set_age(&store, old, 25);
    let report = gc(&store, &ALL).unwrap();
    assert_eq!(removed(&report), [(DebrisKind::Leftover, old, 1, 3)]);
    assert_eq!(report.kept, [Kept { key: young.to_owned(), reason: "it was written too recently".to_owned() }]);
    set_age(&store, young, 48);
    let found = |hours: u64| {
        let options = GcOptions { older_than: Duration::from_secs(hours * 3600), dry_run: true };
        gc(&store, &options).unwrap().removed.len()
    };
    assert_eq!((found(47), found(49)), (1, 0));
}

#[test]
fn finished_steps_are_forgotten_only_when_their_versions_are_gone() {
    each_store(|store, folder| {
        for owner in ["a", "b"] {
            publish(store, new_version(folder, owner, "x")).unwrap();
        }
        let put = |fingerprint: &str, outputs: &[&str]| {
            let outputs = outputs.iter().map(|o| ((*o).to_owned(), (*o).to_owned()));
            let (fingerprint, run_id) = (fingerprint.to_owned(), "r".to_owned());
            let step = CachedStep {
                fingerprint,
                run_id,
                outputs: outputs.collect::<BTreeMap<_, _>>(),
                metrics: serde_json::Value::Null,
            };
            StepCache::put(store, &step).unwrap();
        };
        put("01", &["model:net@1"]);
        put("02", &["model:net@1", "model:net@2"]);
        put("03", &["data:never@1"]);
        put("04", &[]);
        store.put("cache/steps/05.json", b"{".to_vec()).unwrap();
        store.put("cache/steps/notes.txt", b"x".to_vec()).unwrap();
        remove_version(store, &reference("model:net@2"), "a test").unwrap();
        // a damaged manifest is to be restored, not gone
        let manifest = store.get("registry/models/net/0000000001.json").unwrap().unwrap();
        store.put("registry/models/net/0000000001.json", b"{".to_vec()).unwrap();
        let report = gc(store, &ALL).unwrap();
        let forgotten: Vec<&str> =
            report.removed.iter().filter(|d| d.kind == DebrisKind::CachedStep).map(|d| d.key.as_str()).collect();
        assert_eq!(forgotten, ["cache/steps/02.json", "cache/steps/03.json"]);
        // nor are its files touched: what it names is not known
        assert!(report.kept.iter().any(|k| k.key == "models/net/1" && k.reason.contains("is not JSON")), "{report:?}");
        store.put("registry/models/net/0000000001.json", manifest).unwrap();
        verify_version(store, &get(store, &reference("model:net@1")).unwrap()).unwrap();
        assert!(StepCache::get(store, "01").unwrap().is_some());
    });
}

#[test]
fn a_damaged_claim_belongs_to_nobody_and_its_number_stays_taken() {
    each_store(|store, folder| {
        store.put("registry/models/net/0000000001.claim.json", b"{".to_vec()).unwrap();
        store.put("models/net/1/half", b"x".to_vec()).unwrap();
        // known by name, but without claim: only a lost registry leaves that
        store.put("models/net/2/half", b"x".to_vec()).unwrap();
        assert_eq!(publish(store, new_version(folder, "o", "x")).unwrap_err().kind(), ErrorKind::Conflict);
        assert_eq!(gc(store, &ALL).unwrap().files(), 2);
        assert_eq!(publish(store, new_version(folder, "o", "x")).unwrap().version, 2);
    });
}

#[test]
fn checkpoints_of_a_step_that_goes_on_stay() {
    let leased = Store::in_memory().with_lease(Duration::from_secs(2));
    let check = |store: &Store| {
        let key = format!("checkpoints/{HASH}/step-00000001/weights.safetensors");
        store.put(&key, b"x".to_vec()).unwrap();
        let lock = store.lock(&step_lock(HASH)).unwrap();
        let report = gc(store, &ALL).unwrap();
        assert!(report.removed.is_empty() && report.kept[0].reason == "its step is going on", "{report:?}");
        drop(lock);
        assert_eq!(gc(store, &ALL).unwrap().files(), 1);
        assert!(!store.exists(&key).unwrap());
    };
    each_store(|store, _| check(store));
    check(&leased);
}
