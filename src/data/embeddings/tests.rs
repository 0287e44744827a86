use super::*;
use crate::ErrorKind;

fn manifest(dim: usize) -> EmbeddingsManifest {
    EmbeddingsManifest {
        format_version: 0,
        rows: 0,
        dim,
        model_reference: "model:tiny@1".into(),
        model_digest: "ab".into(),
        pixels: serde_json::json!({"image_size": [32, 32]}),
        code_version: "c0de".into(),
        image_tsv_sha256: "cd".into(),
    }
}

fn sample(rows: usize, dim: usize) -> Embeddings {
    Embeddings {
        names: (0..rows).map(|i| format!("bild-{i}-é")).collect(),
        hashes: (0..rows).map(|i| format!("{i:064x}")).collect(),
        dim,
        features: (0..rows * dim).map(|i| i as f32 / 7.0).collect(),
        manifest: manifest(dim),
    }
}

#[test]
fn reads_what_it_wrote_over_several_groups() {
    let dir = tempfile::tempdir().unwrap();
    for rows in [0, 1, 9000] {
        let sample = sample(rows, 3);
        let written = sample.write(dir.path()).unwrap();
        assert_eq!((written.rows, written.format_version), (rows as u64, FORMAT_VERSION));
        let read = Embeddings::read(dir.path()).unwrap();
        assert_eq!(read, Embeddings { manifest: written, ..sample });
    }
}

#[test]
fn npy_header_is_the_documented_one() {
    let dir = tempfile::tempdir().unwrap();
    sample(2, 3).write(dir.path()).unwrap();
    let bytes = fs::read(dir.path().join(NPY)).unwrap();
    assert_eq!(&bytes[..10], b"\x93NUMPY\x01\x00\x76\x00");
    assert!(bytes[10..].starts_with(b"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }"));
    assert_eq!(bytes[127], b'\n');
    assert_eq!(bytes.len(), 128 + 2 * 3 * 4);
    assert_eq!(bytes[132..136], (1.0_f32 / 7.0).to_le_bytes());
}

#[test]
fn pickle_names_only_public_functions() {
    let dir = tempfile::tempdir().unwrap();
    sample(2001, 2).write(dir.path()).unwrap();
    let bytes = fs::read(dir.path().join(PICKLE)).unwrap();
    let globals = bytes.iter().filter(|&&b| b == 0x93).count();
    assert!(globals >= 3 && bytes.starts_with(&[0x80, 4]) && bytes.ends_with(b"u\x85R."));
    for name in ["pandas", "DataFrame", "numpy", "frombuffer", "builtins", "bytearray"] {
        assert!(bytes.windows(name.len()).any(|w| w == name.as_bytes()), "{name}");
    }
}

#[test]
fn refuses_bad_rows() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = EmbeddingsWriter::create(dir.path(), manifest(2)).unwrap();
    assert_eq!(writer.push("a", "", &[1.0]).unwrap_err().kind(), ErrorKind::Data);
    assert_eq!(writer.push("a", "", &[1.0, f32::NAN]).unwrap_err().kind(), ErrorKind::Data);
    assert!(EmbeddingsWriter::create(dir.path(), manifest(0)).is_err());
}

#[test]
fn refuses_unfinished_mixed_newer_and_damaged_folders() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    sample(2, 3).write(a.path()).unwrap();
    let unfinished = EmbeddingsWriter::create(b.path(), manifest(3)).unwrap();
    drop(unfinished);
    assert_eq!(read(b.path()).unwrap_err().kind(), ErrorKind::NotFound);

    let mut other = sample(2, 3);
    other.manifest.model_digest = "ef".into();
    other.write(b.path()).unwrap();
    fs::copy(a.path().join(PARQUET), b.path().join(PARQUET)).unwrap();
    assert!(read(b.path()).unwrap_err().to_string().contains("does not belong"));
    assert!(other.manifest.same_space(&sample(1, 3).manifest, ("x", "y")).is_err());
    assert!(manifest(3).same_space(&sample(1, 3).manifest, ("x", "y")).is_ok());

    fs::write(b.path().join(PARQUET), b"PAR1 not really").unwrap();
    assert_eq!(read(b.path()).unwrap_err().kind(), ErrorKind::Data);

    fs::write(a.path().join(MANIFEST), r#"{"format_version": 99, "shape": "unknown"}"#).unwrap();
    assert!(read(a.path()).unwrap_err().to_string().contains("newer medtune"));
}
