//! Every test runs against a folder and against memory.

use super::*;

fn each_store(test: impl Fn(&Store)) {
    let folder = tempfile::tempdir().unwrap();
    test(&Store::open(folder.path().to_str().unwrap()).unwrap());
    test(&Store::in_memory());
}

#[test]
fn objects_are_put_read_listed_and_deleted() {
    each_store(|store| {
        assert_eq!(store.get("a/b").unwrap(), None);
        assert!(store.list("a").unwrap().is_empty());
        store.put("a/b", b"one".to_vec()).unwrap();
        store.put("a/b", b"two".to_vec()).unwrap();
        store.put("a/a/z", Vec::new()).unwrap();
        store.put("ab", b"x".to_vec()).unwrap();
        assert_eq!(store.get("a/b").unwrap().unwrap(), b"two");
        let keys: Vec<_> = store.list("a/").unwrap().into_iter().map(|o| (o.key, o.size)).collect();
        assert_eq!(keys, [("a/a/z".to_owned(), 0), ("a/b".to_owned(), 3)]);
        assert_eq!(store.list("").unwrap().len(), 3);
        assert!(store.exists("a/b").unwrap() && !store.exists("a").unwrap());
        store.delete("a/b").unwrap();
        store.delete("a/b").unwrap();
        assert!(!store.exists("a/b").unwrap());
        assert_eq!(store.put("../x", Vec::new()).unwrap_err().kind(), ErrorKind::Config);
    });
}

#[test]
fn files_travel_in_parts_and_are_verified() {
    let folder = tempfile::tempdir().unwrap();
    let content: Vec<u8> = (0..(20 << 20) + 7_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    each_store(|store| {
        for size in [0, 5, 8 << 20, (8 << 20) + 1, content.len()] {
            let source = folder.path().join("source");
            std::fs::write(&source, &content[..size]).unwrap();
            let digest = store.put_file("f/x", &source).unwrap();
            assert_eq!(digest, sha256_file(&source).unwrap());
            assert_eq!(store.digest("f/x").unwrap().unwrap(), digest);
            let to = folder.path().join("to");
            store.download("f/x", &to, &digest).unwrap();
            assert!(std::fs::read(&to).unwrap() == content[..size]);
        }
    });
}

#[test]
fn a_changed_object_never_becomes_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("to");
    each_store(|store| {
        store.put("x", b"abd".to_vec()).unwrap();
        let mut expected = FileDigest { size: 3, sha256: sha256_hex(b"abc") };
        let error = store.download("x", &to, &expected).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Data);
        assert!(error.to_string().contains("/x' has changed: its sha256"), "{error}");
        expected.size = 4;
        assert!(store.download("x", &to, &expected).unwrap_err().to_string().contains("3 bytes, expected 4"));
        assert_eq!(store.download("y", &to, &expected).unwrap_err().kind(), ErrorKind::NotFound);
    });
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn uris_are_canonical() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a b");
    let store = Store::open(path.to_str().unwrap()).unwrap();
    assert!(store.uri().starts_with("file:///") && store.uri().ends_with("/a%20b"));
    assert_eq!(Store::open(store.uri()).unwrap().uri(), store.uri());
    assert_eq!(store.uri_of("k/l"), format!("{}/k/l", store.uri()));
    store.put("k/l", b"1".to_vec()).unwrap();
    assert_eq!(std::fs::read(store.local_path("k/l").unwrap()).unwrap(), b"1");
    assert!(store.local_path("../k").is_none() && Store::in_memory().local_path("k").is_none());
}

#[test]
fn of_many_creators_one_wins() {
    each_store(|store| {
        for round in 0..5 {
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
    });
}

#[test]
fn a_lost_answer_is_a_win_and_a_false_conflict_is_tried_again() {
    let store = faults::faulty_store();
    for i in 0..30_u8 {
        assert_eq!(store.create_exact(&format!("k/{i}"), vec![i]).unwrap(), Created::Won, "{i}");
        assert_eq!(store.create_exact(&format!("k/{i}"), vec![99]).unwrap(), Created::Lost(vec![i]), "{i}");
    }
}

#[test]
fn bad_reads_end_in_the_right_bytes_or_in_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let store = faults::unreadable_store();
    let (mut right, mut refused) = (0, 0);
    // one request, and several ranges
    for size in [0, 7, 1000, 40 << 20] {
        let content: Vec<u8> = (0..size as u64).map(|i| (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect();
        let source = folder.path().join("source");
        std::fs::write(&source, &content).unwrap();
        let digest = store.put_file("f", &source).unwrap();
        for _ in 0..10 {
            let to = folder.path().join("to");
            match store.download("f", &to, &digest) {
                Ok(()) => {
                    assert!(std::fs::read(&to).unwrap() == content);
                    right += 1;
                }
                Err(error) => {
                    assert!(matches!(error.kind(), ErrorKind::Storage | ErrorKind::Data), "{error}");
                    refused += 1;
                }
            }
            drop(std::fs::remove_file(&to));
            assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        }
    }
    assert!(right > 2 * refused, "{right} {refused}");
}

#[test]
fn an_interrupted_fetch_is_gone_on_with() {
    let folder = tempfile::tempdir().unwrap();
    let content: Vec<u8> = (0..(20_u64 << 20)).map(|i| (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect();
    let source = folder.path().join("source");
    std::fs::write(&source, &content).unwrap();
    let store = Store::in_memory();
    let digest = store.put_file("f", &source).unwrap();
    let to = folder.path().join("to");
    for (left, what) in [(&content[..12_345_678], "a part"), (&content[..], "all"), (b"other", "something else")] {
        std::fs::write(&to, left).unwrap();
        store.fetch("f", &to, &digest).unwrap();
        assert!(std::fs::read(&to).unwrap() == content, "{what}");
    }
    store.put("f", b"short".to_vec()).unwrap();
    std::fs::write(&to, &content[..100]).unwrap();
    assert_eq!(store.fetch("f", &to, &digest).unwrap_err().kind(), ErrorKind::Data);
    assert!(!to.exists());
}

#[test]
fn a_folder_that_cannot_be_made_is_an_error() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let error = Store::open(file.path().join("x").to_str().unwrap()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
}
