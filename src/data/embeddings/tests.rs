use super::*;
use crate::ErrorKind;

fn manifest(dim: usize) -> EmbeddingsManifest {
    EmbeddingsManifest {
        format_version: 0,
        rows: 0,
        space: Space {
            dim,
            model_reference: "model:tiny@1".into(),
            model_digest: "ab".into(),
            pixels: serde_json::json!({"image_size": [32, 32]}),
            precision: "f32".into(),
            pixels_version: 1,
            code_version: "c0de".into(),
        },
        image_tsv: "sha256:cd".into(),
        image_tsv_rows: 0,
        bad_rows: 0,
        reused: None,
        texts: None,
        parts: Vec::new(),
    }
}

/// The rows from `first` on, counted from 1.
fn part(first: u64, count: usize, dim: usize) -> Part {
    let mut part = Part::default();
    for row in first..first + count as u64 {
        let features: Vec<f32> = (0..dim).map(|i| (row as usize * dim + i) as f32 / 7.0).collect();
        part.push(row, (&format!("bild-{row}-é"), &format!("{row:064x}")), &features).unwrap();
    }
    part
}

fn bad(row: u64) -> BadRow {
    BadRow { row, key: None, reason: "no tab".into() }
}

fn write(dir: &Path, parts: &[Part], dim: usize, forms: (bool, bool)) -> EmbeddingsManifest {
    let image_tsv_rows = parts.iter().map(|part| part.len() as u64).sum();
    let manifest_of = EmbeddingsManifest { image_tsv_rows, ..manifest(dim) };
    let mut writer = EmbeddingsWriter::create(dir, manifest_of, forms).unwrap();
    for part in parts {
        part.write(&writer.next_path(), &manifest(dim).space).unwrap();
        writer.add(Vec::new()).unwrap();
    }
    writer.finish().unwrap()
}

#[test]
fn reads_what_it_wrote_over_several_parts_and_groups() {
    let dir = tempfile::tempdir().unwrap();
    for counts in [vec![], vec![0], vec![1], vec![9000, 3]] {
        let mut first = 1;
        let parts: Vec<Part> = counts
            .iter()
            .map(|&count| {
                first += count as u64;
                part(first - count as u64, count, 3)
            })
            .collect();
        let written = write(dir.path(), &parts, 3, (false, false));
        assert_eq!((written.rows, written.parts.len()), (first - 1, counts.len()));
        let read = read(dir.path()).unwrap();
        assert_eq!(read.manifest, written);
        assert_eq!(read.table, part(1, (first - 1) as usize, 3));
        assert!(!dir.path().join(NPY).exists() && !dir.path().join(PICKLE).exists());
    }
}

#[test]
fn a_key_that_was_there_before_goes_to_the_ledger() {
    let dir = tempfile::tempdir().unwrap();
    let seven = EmbeddingsManifest { image_tsv_rows: 7, ..manifest(2) };
    let mut writer = EmbeddingsWriter::create(dir.path(), seven, (true, false)).unwrap();
    let (first, mut second) = (part(1, 3, 2), part(5, 3, 2));
    second.names[1].clone_from(&first.names[0]);
    second.names[2] = second.names[0].clone();
    for (table, bad) in [(&first, vec![bad(4)]), (&second, Vec::new())] {
        table.write(&writer.next_path(), &manifest(2).space).unwrap();
        writer.add(bad).unwrap();
    }
    assert_eq!(writer.bad().len(), 3);
    let written = writer.finish().unwrap();
    assert_eq!((written.rows, written.bad_rows), (4, 3));
    let read = read(dir.path()).unwrap();
    assert_eq!(read.table.rows, [1, 2, 3, 5]);
    let places: Vec<u64> = read.bad.iter().map(|bad| bad.row).collect();
    assert_eq!(places, [4, 6, 7]);
    assert_eq!(read.bad[1].reason, "the key was used in row 1 already");
    assert_eq!(read.bad[2].reason, "the key was used in row 5 already");
    assert_eq!(fs::read(dir.path().join(NPY)).unwrap().len(), 128 + 4 * 2 * 4);
    assert_eq!(read.row(3), &second.features[..2]);
}

#[test]
fn npy_header_is_the_documented_one() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &[part(1, 2, 3)], 3, (true, false));
    let bytes = fs::read(dir.path().join(NPY)).unwrap();
    assert_eq!(&bytes[..10], b"\x93NUMPY\x01\x00\x76\x00");
    assert!(bytes[10..].starts_with(b"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }"));
    assert_eq!(bytes[127], b'\n');
    assert_eq!(bytes.len(), 128 + 2 * 3 * 4);
    assert_eq!(bytes[132..136], (4.0_f32 / 7.0).to_le_bytes());
}

#[test]
fn pickle_names_only_public_functions() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &[part(1, 2001, 2)], 2, (false, true));
    let bytes = fs::read(dir.path().join(PICKLE)).unwrap();
    let globals = bytes.iter().filter(|&&b| b == 0x93).count();
    assert!(globals >= 3 && bytes.starts_with(&[0x80, 4]) && bytes.ends_with(b"u\x85R."));
    for name in ["pandas", "DataFrame", "numpy", "frombuffer", "builtins", "bytearray"] {
        assert!(bytes.windows(name.len()).any(|w| w == name.as_bytes()), "{name}");
    }
    assert!(!dir.path().join(NPY).exists());
}

/// Written by a program that knew the first format only.
#[test]
fn the_first_format_is_read() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/embeddings-v1");
    let read = read(&dir).unwrap();
    assert_eq!((read.rows(), read.dim(), read.bad.len()), (18, 24, 0));
    assert_eq!((read.table.rows[17], read.table.names[17].as_str()), (18, "c2/017.jpg"));
    assert_eq!(read.manifest.space.precision, "f32");
    assert!(read.manifest.image_tsv.starts_with("sha256:97390ee6"));
    let length: f32 = read.row(17).iter().map(|v| v * v).sum();
    assert!((length - 1.0).abs() < 1e-5);
    assert_eq!(read_hashes(&dir, &read.manifest.parts[0]).unwrap(), read.table.hashes);
}

#[test]
fn refuses_bad_rows() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(Part::default().push(1, ("a", ""), &[1.0, f32::NAN]).unwrap_err().kind(), ErrorKind::Data);
    let mut short = part(1, 1, 2);
    short.features.pop();
    assert!(short.write(&dir.path().join("a.parquet"), &manifest(2).space).is_err());
    assert!(EmbeddingsWriter::create(dir.path(), manifest(0), (false, false)).is_err());
}

#[test]
fn refuses_unfinished_mixed_newer_and_damaged_folders() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let rows = [part(1, 2, 3)];
    write(a.path(), &rows, 3, (false, false));
    drop(EmbeddingsWriter::create(b.path(), manifest(3), (false, false)).unwrap());
    assert_eq!(read(b.path()).unwrap_err().kind(), ErrorKind::NotFound);

    write(b.path(), &rows, 3, (false, false));
    let mut other = manifest(3).space;
    other.model_digest = "ef".into();
    rows[0].write(&b.path().join(part_name(0)), &other).unwrap();
    assert!(read(b.path()).unwrap_err().to_string().contains("does not belong"));
    let others = EmbeddingsManifest { space: other, ..manifest(3) };
    assert!(others.same_space(&manifest(3), ("x", "y")).is_err());
    assert!(manifest(3).same_space(&manifest(3), ("x", "y")).is_ok());

    fs::write(b.path().join(part_name(0)), b"PAR1 not really").unwrap();
    assert_eq!(read(b.path()).unwrap_err().kind(), ErrorKind::Data);

    let path = a.path().join(MANIFEST);
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("parquet/part-00000", "../part-00000")).unwrap();
    assert!(read(a.path()).unwrap_err().to_string().contains("no name of a part"));
    fs::write(&path, r#"{"format_version": 99, "shape": "unknown"}"#).unwrap();
    assert!(read(a.path()).unwrap_err().to_string().contains("newer medtune"));
}
