//! Shows what becomes of image files. The tests compare what it writes with Pillow.
//!
//! `standardise CASES.json` takes a list of cases `{"image": "a.png", "size": 64, "out": "a.rgb"}`. For each it writes the pixels of the
//! standardised image before it is stored as a JPEG, three bytes each, row by row; without `size` those of the decoded image. It prints a
//! line of JSON for each: `{"size": [width, height]}`, or `{"error": "..."}` for a file that is refused, with `"early": true` where the
//! check without decoding refuses it too.

use medtune::imaging::{check_image, decode, resize_bicubic};
use serde::Deserialize;
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    image: PathBuf,
    size: Option<usize>,
    out: PathBuf,
}

fn main() -> anyhow::Result<()> {
    let path = std::env::args().nth(1).ok_or_else(|| anyhow::anyhow!("usage: standardise CASES.json"))?;
    let cases: Vec<Case> = serde_json::from_slice(&fs::read(path)?)?;
    for case in cases {
        println!("{}", run(case)?);
    }
    Ok(())
}

fn run(Case { image, size, out }: Case) -> anyhow::Result<Value> {
    let bytes = fs::read(image)?;
    let early = check_image(&bytes);
    let image = match decode(&bytes) {
        Err(error) => return Ok(json!({ "error": error.to_string(), "early": early.is_err() })),
        Ok(image) => image,
    };
    let image = size.map_or_else(|| image.clone(), |size| resize_bicubic(&image, size, size));
    fs::write(out, image.pixels())?;
    Ok(json!({ "size": [image.width(), image.height()] }))
}
