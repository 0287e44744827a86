//! What the suite of tests/stores.rs cannot see from outside: faults, interrupted fetches, paths.

use super::*;

/// Bytes of which no stretch equals another.
fn content(size: u64) -> Vec<u8> {
    (0..size).map(|i| (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect()
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
        let content = content(size);
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
    let content = content(20 << 20);
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
