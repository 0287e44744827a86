//! One suite for every kind of store: memory, a folder, a real S3 server and a real Azure Blob server, which the tests start.
//! A server that does not start is a failure.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use medtune::registry::{
    AssetKind, Lineage, NewVersion, Reference, folder_files, get, list_versions, open_local, publish, pull,
    verify_version,
};
use medtune::storage::{Created, FileDigest, Source, Store, StoreSettings, sha256_file, sha256_hex};
use medtune::{Error, ErrorKind};

/// A server that ends with this value.
struct Server {
    process: Child,
    /// What it said when it was ready.
    ready: serde_json::Value,
}

impl Server {
    /// Starts a script of tests/servers.
    fn start(script: &str, arguments: &[&str]) -> Server {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut process = Command::new(root.join(".venv/bin/python"))
            .arg(root.join("tests/servers").join(script))
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("{script} cannot be started ({e}): run scripts/setup --test"));
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let ready = serde_json::from_str(&line);
        let ready = ready.unwrap_or_else(|_| panic!("{script} did not start: run scripts/setup --test; see above"));
        Server { process, ready }
    }

    fn said(&self, key: &str) -> &str {
        self.ready[key].as_str().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        self.process.wait().ok();
    }
}

/// A place for stores, and what it is reached with.
struct Place {
    uri: String,
    settings: StoreSettings,
    folder: tempfile::TempDir,
    _server: Option<Server>,
}

impl Place {
    fn new(uri: &str, server: Option<Server>, variables: &[(&str, &str)]) -> Place {
        let folder = tempfile::tempdir().unwrap();
        let mut environment: BTreeMap<String, String> =
            variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let cache = folder.path().join("cache").to_str().unwrap().to_owned();
        environment.insert("MEDTUNE_CACHE_DIR".to_owned(), cache);
        environment.insert("MEDTUNE_STORE_LEASE_SECONDS".to_owned(), "3".to_owned());
        let settings = StoreSettings::from_environment(&environment);
        Place { uri: uri.to_owned(), settings, folder, _server: server }
    }

    fn memory() -> Place {
        Place::new("memory://", None, &[])
    }

    fn folder() -> Place {
        let mut place = Place::new("", None, &[]);
        place.uri = place.folder.path().join("store").to_str().unwrap().to_owned();
        place
    }

    fn s3() -> Place {
        let server = Server::start("s3.py", &["bucket"]);
        let endpoint = server.said("endpoint").to_owned();
        let variables = [
            ("AWS_ACCESS_KEY_ID", "AKIATESTTESTTESTTEST"),
            ("AWS_SECRET_ACCESS_KEY", "a/secret/of/nobody"),
            ("AWS_REGION", "us-east-1"),
            ("AWS_ENDPOINT_URL", &endpoint),
            ("AWS_ALLOW_HTTP", "true"),
        ];
        Place::new("s3://bucket/team/store", Some(server), &variables)
    }

    fn azure() -> Place {
        let server = Server::start("azure.py", &["container"]);
        let endpoint = format!("{}/devstoreaccount1", server.said("url"));
        let variables = [
            ("AZURE_STORAGE_ACCOUNT_NAME", "devstoreaccount1"),
            // the emulator's, which its documentation prints
            (
                "AZURE_STORAGE_ACCOUNT_KEY",
                "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==",
            ),
            ("AZURE_STORAGE_ENDPOINT", &endpoint),
            ("AZURE_ALLOW_HTTP", "true"),
        ];
        Place::new("az://container/team/store", Some(server), &variables)
    }

    fn open(&self) -> Store {
        Store::open_with(&self.uri, &self.settings).unwrap()
    }

    fn write(&self, name: &str, content: &[u8]) -> std::path::PathBuf {
        let path = self.folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        path
    }
}

/// Bytes of which no stretch equals another.
fn content(size: usize) -> Vec<u8> {
    (0..size as u64).map(|i| (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect()
}

fn suite(place: &Place) {
    let store = place.open();
    store.preflight().unwrap();
    assert!(store.list("").unwrap().is_empty(), "a preflight leaves nothing");
    objects(&store);
    files(place, &store);
    creators(&store);
    locks(&store);
    versions(place, &store);
    if store.is_remote() {
        inputs(place);
        missing(place);
    }
}

fn objects(store: &Store) {
    assert_eq!(store.get("a/b").unwrap(), None);
    assert!(store.list("a").unwrap().is_empty() && !store.exists("a/b").unwrap());
    for (key, body) in [("a/b", "one"), ("a/b", "two"), ("a/a/z", ""), ("ab", "x"), ("a/b-c.d_e", "y")] {
        store.put(key, body.as_bytes().to_vec()).unwrap();
    }
    assert_eq!(store.get("a/b").unwrap().unwrap(), b"two");
    assert_eq!(store.get("a/a/z").unwrap().unwrap(), b"");
    let keys = |prefix: &str| -> Vec<_> { store.list(prefix).unwrap().into_iter().map(|o| (o.key, o.size)).collect() };
    let below = [("a/a/z".to_owned(), 0), ("a/b".to_owned(), 3), ("a/b-c.d_e".to_owned(), 1)];
    assert_eq!(keys("a"), below);
    assert_eq!(keys("a/"), below);
    assert_eq!(keys("").len(), 4);
    assert!(store.exists("a/b").unwrap() && !store.exists("a").unwrap());
    let written = store.list("").unwrap().into_iter().find(|o| o.key == "ab").unwrap().modified;
    let age = time::OffsetDateTime::now_utc() - written;
    assert!(age.whole_minutes().abs() <= 5, "{age}");
    store.grow("g", b"one\n", 0).unwrap();
    store.grow("g", b"one\ntwo\n", 4).unwrap();
    assert_eq!(store.get("g").unwrap().unwrap(), b"one\ntwo\n");
    store.delete("a/b").unwrap();
    store.delete("a/b").unwrap();
    store.delete_folder("a").unwrap();
    assert_eq!(keys("").len(), 2);
    for key in ["../x", "/x", "a//b", "a b", "é", ""] {
        assert_eq!(store.put(key, Vec::new()).unwrap_err().kind(), ErrorKind::Config, "{key}");
    }
}

fn files(place: &Place, store: &Store) {
    // around one part of an upload, and around one range of a download
    for size in [0, 5, 8 << 20, (8 << 20) + 1, 16 << 20, (40 << 20) + 7] {
        let source = place.write("source", &content(size));
        let digest = store.put_file("f/x", &source).unwrap();
        assert_eq!(digest, sha256_file(&source).unwrap());
        assert_eq!(store.digest("f/x").unwrap().unwrap(), digest);
        let to = place.folder.path().join("to");
        store.download("f/x", &to, &digest).unwrap();
        assert!(std::fs::read(&to).unwrap() == content(size), "{size}");
    }
    let to = place.folder.path().join("never");
    for (size, telling) in [(3, "its sha256 is"), (4, "3 bytes, expected 4"), (30 << 20, "3 bytes, expected 31457280")]
    {
        store.put("f/y", b"abd".to_vec()).unwrap();
        let expected = FileDigest { size, sha256: sha256_hex(b"abc") };
        let error = store.download("f/y", &to, &expected).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Data, "{error}");
        assert!(error.to_string().contains(telling), "{error}");
    }
    let expected = FileDigest { size: 1, sha256: sha256_hex(b"a") };
    assert_eq!(store.download("f/none", &to, &expected).unwrap_err().kind(), ErrorKind::NotFound);
    let names = std::fs::read_dir(place.folder.path()).unwrap().map(|e| e.unwrap().file_name());
    let left: Vec<_> = names.filter(|name| name.to_string_lossy().contains("never")).collect();
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(store.digest("f/none").unwrap(), None);
}

fn creators(store: &Store) {
    for round in 0..10 {
        let key = format!("c/{round}");
        let outcomes: Vec<(u8, Created)> = std::thread::scope(|scope| {
            let key = &key;
            let racers: Vec<_> =
                (0..16_u8).map(|i| scope.spawn(move || (i, store.create_exact(key, vec![i]).unwrap()))).collect();
            racers.into_iter().map(|r| r.join().unwrap()).collect()
        });
        let winners: Vec<u8> = outcomes.iter().filter(|(_, o)| *o == Created::Won).map(|(i, _)| *i).collect();
        assert_eq!(winners.len(), 1);
        assert_eq!(store.get(&key).unwrap().unwrap(), winners);
        assert!(outcomes.iter().all(|(_, o)| *o == Created::Won || *o == Created::Lost(winners.clone())));
    }
}

fn locks(store: &Store) {
    let first = store.lock("work").unwrap();
    assert!(store.is_locked("work").unwrap() && !store.is_locked("other").unwrap());
    let waited = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let lock = store.lock("work").unwrap();
            (std::time::Instant::now(), lock)
        });
        std::thread::sleep(std::time::Duration::from_millis(500));
        first.check().unwrap();
        let released = std::time::Instant::now();
        drop(first);
        let (taken, lock) = waiting.join().unwrap();
        lock.check().unwrap();
        taken >= released
    });
    assert!(waited && !store.is_locked("work").unwrap());
}

fn versions(place: &Place, store: &Store) {
    place.write("v/MLmodel", b"flavors: {}\n");
    place.write("v/data/weights.bin", &content(9 << 20));
    let source = place.folder.path().join("v");
    let new = |owner: &str| NewVersion {
        kind: AssetKind::Model,
        name: "net".to_owned(),
        description: "a test's".to_owned(),
        tags: BTreeMap::new(),
        files: folder_files(&source).unwrap(),
        owner: owner.to_owned(),
        lineage: Lineage::default(),
        metadata: serde_json::Value::Null,
    };
    let version = publish(store, new("one")).unwrap();
    assert_eq!((version.version, publish(store, new("one")).unwrap()), (1, version.clone()));
    let racers: Vec<u64> = std::thread::scope(|scope| {
        let racers: Vec<_> =
            (0..6).map(|i| scope.spawn(move || publish(store, new(&format!("racer {i}"))).unwrap().version)).collect();
        let mut numbers: Vec<u64> = racers.into_iter().map(|r| r.join().unwrap()).collect();
        numbers.sort_unstable();
        numbers
    });
    assert_eq!(racers, [2, 3, 4, 5, 6, 7]);
    assert_eq!(list_versions(store, AssetKind::Model, "net").unwrap().len(), 7);
    let found = get(store, &Reference::parse("model:net@1", None).unwrap()).unwrap();
    verify_version(store, &found).unwrap();
    let pulled = place.folder.path().join("pulled");
    pull(store, &found, &pulled).unwrap();
    pull(store, &found, &pulled).unwrap();
    assert!(std::fs::read(pulled.join("data/weights.bin")).unwrap() == content(9 << 20));
    if store.uri() != "memory://" {
        let local = open_local(store, &found).unwrap();
        assert_eq!(std::fs::read(local.join("MLmodel")).unwrap(), b"flavors: {}\n");
        assert_eq!(open_local(store, &found).unwrap(), local);
    }
    store.put("models/net/1/data/weights.bin", content(9 << 20).into_iter().rev().collect()).unwrap();
    store.put("models/net/1/data/more.bin", b"x".to_vec()).unwrap();
    let text = verify_version(store, &found).unwrap_err().to_string();
    assert!(text.contains("changed 'data/weights.bin'") && text.contains("extra 'data/more.bin'"), "{text}");
}

/// Objects that other tools have put somewhere, read by URI.
fn inputs(place: &Place) {
    let bucket = place.uri.split("/team").next().unwrap();
    let store = Store::open_with(bucket, &place.settings).unwrap();
    store.put("in/rows.tsv", b"a\tb\n".to_vec()).unwrap();
    store.put("in/rows.lineidx", b"0\n".to_vec()).unwrap();
    store.put("in/class/1.png", content(100)).unwrap();
    let cache = store.cache().unwrap();
    let file = Source::open(&format!("{bucket}/in/rows.tsv"), &place.settings).unwrap();
    assert!(file.is_file().unwrap() && !file.is_folder().unwrap());
    let (path, digest) = file.file(&cache, &["rows.lineidx".to_owned(), "none".to_owned()]).unwrap();
    assert_eq!((std::fs::read(&path).unwrap(), digest.size), (b"a\tb\n".to_vec(), 4));
    assert!(path.with_extension("lineidx").is_file() && !path.with_file_name("none").exists());
    // changed: another content under the same name
    store.put("in/rows.tsv", b"c\td\n".to_vec()).unwrap();
    assert_eq!(std::fs::read(file.file(&cache, &[]).unwrap().0).unwrap(), b"c\td\n");
    let folder = Source::open(&format!("{bucket}/in/"), &place.settings).unwrap();
    assert!(!folder.is_file().unwrap() && folder.is_folder().unwrap());
    let local = folder.folder(&cache).unwrap();
    assert!(std::fs::read(local.join("class/1.png")).unwrap() == content(100));
    assert_eq!(folder.folder(&cache).unwrap(), local);
    let none = Source::open(&format!("{bucket}/nothing"), &place.settings).unwrap();
    assert!(!none.is_file().unwrap() && !none.is_folder().unwrap());
    assert_eq!(none.folder(&cache).unwrap_err().kind(), ErrorKind::NotFound);
}

fn missing(place: &Place) {
    let elsewhere = |uri: &str| -> Error {
        Store::open_with(uri, &place.settings).and_then(|store| store.preflight()).unwrap_err()
    };
    let scheme = place.uri.split("://").next().unwrap();
    let error = elsewhere(&format!("{scheme}://no-such-place/x"));
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    assert!(error.to_string().contains("bucket or container does not exist"), "{error}");
    let error = Store::open_existing(&format!("{}-typo", place.uri), &place.settings).unwrap_err();
    assert!(error.kind() == ErrorKind::NotFound && error.to_string().contains("there is no store"), "{error}");
}

#[test]
fn memory() {
    suite(&Place::memory());
}

#[test]
fn folder() {
    suite(&Place::folder());
}

#[test]
fn s3() {
    suite(&Place::s3());
}

#[test]
fn azure() {
    suite(&Place::azure());
}
