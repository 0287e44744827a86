//! Compares the pixel path with Pillow, byte for byte. `tests/golden/make_imaging_golden.py` made the values.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::*;

fn golden(section: &str) -> Vec<Value> {
    let all: Value = serde_json::from_str(include_str!("../../tests/golden/imaging.json")).unwrap();
    all[section].as_array().unwrap().clone()
}

fn bytes(value: &Value) -> Vec<u8> {
    STANDARD.decode(value.as_str().unwrap()).unwrap()
}

fn number(value: &Value) -> usize {
    value.as_u64().unwrap() as usize
}

fn picture(value: &Value) -> RgbImage {
    RgbImage::new(number(&value["width"]), number(&value["height"]), bytes(&value["pixels"])).unwrap()
}

fn assert_same(actual: &RgbImage, expected: &RgbImage, what: &str) {
    assert_eq!((actual.width(), actual.height()), (expected.width(), expected.height()), "{what}");
    let differing = actual.pixels().iter().zip(expected.pixels()).filter(|(a, b)| a != b).count();
    assert_eq!(differing, 0, "{what}: differing bytes");
}

#[test]
fn resize_equals_pillow() {
    for case in golden("resize") {
        let (from, to) = (picture(&case["from"]), picture(&case["to"]));
        let what = format!("{from:?} {} to {to:?}", case["box"]);
        let Some(region) = case["box"].as_array() else {
            assert_same(&resize_bicubic(&from, to.width(), to.height()), &to, &what);
            continue;
        };
        let region: [f64; 4] = std::array::from_fn(|i| region[i].as_f64().unwrap());
        assert_same(&resize_bicubic_box(&from, region, to.width(), to.height()).unwrap(), &to, &what);
    }
}

#[test]
fn encoding_equals_pillow() {
    for case in golden("encode") {
        let quality = number(&case["quality"]) as u8;
        let file = encode_jpeg(&picture(&case["from"]), quality).unwrap();
        assert_same(&decode(&file).unwrap(), &picture(&case["to"]), &format!("quality {quality}"));
    }
    let image = RgbImage::new(1, 1, vec![0; 3]).unwrap();
    assert!(encode_jpeg(&image, 0).is_err() && encode_jpeg(&image, 101).is_err());
}

#[test]
fn decoding_equals_pillow() {
    for case in golden("decode") {
        let (name, file) = (case["name"].as_str().unwrap(), bytes(&case["file"]));
        let image = decode(&file).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_same(&image, &picture(&case["to"]), name);
        check_image(&file).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
}

#[test]
fn whole_path_equals_pillow_and_numpy() {
    let contract = PixelContract { standard_size: 32, image_size: [24, 20], ..PixelContract::default() };
    for case in golden("path") {
        let mut out = vec![0.0; contract.tensor_len()];
        let mut rgb = vec![0; contract.tensor_len()];
        contract.load_rgb(&bytes(&case["file"]), &mut rgb).unwrap();
        contract.normalise_rgb(&rgb, &mut out);
        let expected = bytes(&case["values"]);
        let expected: Vec<f32> = expected.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        assert_eq!(out, expected, "{}", case["name"]);
    }
}

#[test]
fn truncated_files_of_every_format_are_errors() {
    for case in golden("decode") {
        let (name, file) = (case["name"].as_str().unwrap(), bytes(&case["file"]));
        for keep in [file.len() / 2, file.len() * 3 / 4] {
            // TIFF keeps its directory at the end, PNG and JPEG a marker: all must notice
            let error = decode(&file[..keep]).expect_err(name);
            assert_eq!(error.kind(), crate::ErrorKind::Data, "{name}");
            assert!(!error.to_string().contains('\n'), "{name}");
        }
        if name.starts_with("jpeg") {
            assert!(decode(&file[..file.len() - 2]).is_err(), "{name} without its end marker");
            assert!(check_image(&file[..file.len() - 2]).is_err(), "{name} without its end marker");
        }
    }
}

#[test]
fn other_bytes_are_refused_with_a_hint() {
    for bytes in [&b"GIF89a\x01\x00"[..], b"hello", b"%PDF-1.7", b"\xff\xd8\xff\xe0"] {
        assert_eq!(decode(bytes).unwrap_err().kind(), crate::ErrorKind::Data);
        assert!(check_image(bytes).is_err());
    }
    assert!(decode(b"hello").unwrap_err().to_string().contains("use JPEG"));
    assert!(decode(b"").unwrap_err().to_string().contains("empty"));
}

#[test]
fn oversized_headers_are_refused_before_decoding() {
    let case = &golden("decode")[0];
    let mut file = bytes(&case["file"]);
    let frame = file.windows(2).position(|w| w == [0xff, 0xc0]).unwrap();
    file[frame + 5..frame + 9].copy_from_slice(&[0xff, 0xdc, 0xff, 0xdc]);
    assert!(decode(&file).unwrap_err().to_string().contains("limit"));
}
