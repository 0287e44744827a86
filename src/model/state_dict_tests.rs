//! Archives made by hand: right ones, damaged ones, and hostile ones.

use super::*;

/// An archive of one pickle and one storage of twelve floats.
fn archive(pickle: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut out = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let stored = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (name, bytes) in [("m/data.pkl", pickle), ("m/byteorder", b"little"), ("m/data/0", &[0u8; 48])] {
        out.start_file(name, stored).unwrap();
        out.write_all(bytes).unwrap();
    }
    out.finish().unwrap().into_inner()
}

/// The instructions for a tensor in storage 0 with this offset and these sizes.
fn tensor(offset: u8, shape: [u8; 2], stride: [u8; 2]) -> Vec<u8> {
    let mut code = b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\n".to_vec();
    code.extend(b"X\x01\0\0\x000X\x03\0\0\0cpuK\x0ctQ");
    code.extend([b'K', offset, b'K', shape[0], b'K', shape[1], 0x86, b'K', stride[0], b'K', stride[1], 0x86]);
    code.extend(b"\x89ccollections\nOrderedDict\n)RtR");
    code
}

fn dict(key: &str, value: &[u8]) -> Vec<u8> {
    let mut code = b"\x80\x02}(X".to_vec();
    code.extend((key.len() as u32).to_le_bytes());
    code.extend(key.as_bytes());
    code.extend(value);
    code.extend(b"u.");
    code
}

#[test]
fn tensors_are_placed_and_kept_inside_their_storage() {
    let file = archive(&dict("a.weight", &tensor(2, [2, 4], [4, 1])));
    let found = entries(&file).unwrap();
    assert_eq!((found[0].name.as_str(), found[0].length), ("a.weight", 32));
    assert_eq!(found[0].shape, [2, 4]);
    // 2 + 5 + 1 * 4 + 3 is past the twelfth
    for bad in [tensor(5, [2, 4], [4, 1]), tensor(0, [4, 4], [4, 1]), tensor(0, [2, 2], [250, 1])] {
        let error = entries(&archive(&dict("w", &bad))).unwrap_err();
        assert!(error.contains("'w' reaches out of its storage"), "{error}");
    }
}

#[test]
fn foreign_calls_and_nested_dicts_are_refused_by_name() {
    let call = |name: &str| format!("c{name}\n(X\x04\0\0\0truetR").into_bytes();
    for (value, part) in [
        (call("posix\nsystem"), "asks for 'posix.system', which is never called: save a flat state dict"),
        (call("builtins\neval"), "'builtins.eval'"),
        (call("torch\nload"), "'torch.load'"),
        (b"\x8c\x02os\x8c\x06system\x93)R".to_vec(), "'os.system'"),
        (b"}".to_vec(), "'x' is a dict itself: save a flat state dict"),
        (b"K\x03".to_vec(), "'x' is not a tensor"),
        (b"i".to_vec(), "instruction 0x69"),
    ] {
        let error = entries(&archive(&dict("x", &value))).unwrap_err();
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn no_small_file_takes_much_memory() {
    let error = entries(&archive(&dict("w", &tensor(0, [200, 4], [0, 1])))).unwrap_err();
    assert!(error.contains("'w' repeats its numbers"), "{error}");
    // a tuple of twenty numbers that is asked for as a storage
    let long = [b"(".to_vec(), b"K\x01".repeat(20), b"tQ.".to_vec()].concat();
    let error = entries(&archive(&long)).unwrap_err();
    assert!(error.contains("20 parts"), "{error}");
}

#[test]
fn damaged_files_are_errors() {
    let whole = archive(&dict("a", &tensor(0, [2, 2], [2, 1])));
    for cut in [0, 1, 3, whole.len() / 2, whole.len() - 1] {
        assert!(entries(&whole[..cut]).is_err(), "{cut}");
    }
    let pickle = dict("a", &tensor(0, [2, 2], [2, 1]));
    for cut in 0..pickle.len() {
        assert!(entries(&archive(&pickle[..cut])).is_err(), "{cut}");
    }
    // a million nested tuples, and marks without end
    for deep in [[vec![b')'], vec![0x85; 1_000_000], vec![b'.']].concat(), vec![b'('; 1_000_000]] {
        assert!(entries(&archive(&deep)).is_err());
    }
}
