//! Encodes an image TSV by a package's model and says how long it took. The tests compare what it writes with an independent
//! implementation, and `scripts/bench-embed` its time with that of others.
//!
//! `encode PACKAGE IMAGES.tsv OUT.f32 [--precision bf16] [--batch N] [--threads N] [--ask]` writes one unit vector an image,
//! f32 in the order of the rows, and prints one JSON object; with `--ask` it says when it is ready, and encodes once for every
//! line of the standard input. Decoding is part of the time, loading is not.

use clap::{Parser, ValueEnum};
use medtune::Result;
use medtune::config::compute::Compute;
use medtune::data::TsvReader;
use medtune::infer::{Encoder, InferencePrecision, device};
use medtune::package::read_package;
use serde_json::json;
use std::io::BufRead;
use std::path::PathBuf;
use std::time::Instant;

#[derive(Debug, Parser)]
struct Arguments {
    package: PathBuf,
    images: PathBuf,
    out: PathBuf,
    #[arg(long, value_enum, default_value_t = Precision::F32)]
    precision: Precision,
    #[arg(long, default_value_t = 4)]
    batch: usize,
    /// All cores without it.
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// cpu or cuda.
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Encode once for every line of the standard input.
    #[arg(long)]
    ask: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Precision {
    F32,
    Bf16,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let compute = Compute { device: arguments.device.clone(), threads: arguments.threads, ..Compute::default() };
    let precision = match arguments.precision {
        Precision::F32 => InferencePrecision::F32,
        Precision::Bf16 => InferencePrecision::Bf16,
    };
    let device = device::select(&compute)?;
    let encoder = Encoder::load_with(&read_package(&arguments.package)?, device, precision)?;
    let images = TsvReader::open(&arguments.images)?;
    if !arguments.ask {
        return pass(&encoder, &images, &arguments);
    }
    println!("{}", json!({ "ready": true }));
    for _ in std::io::stdin().lock().lines() {
        pass(&encoder, &images, &arguments)?;
    }
    Ok(())
}

/// Encodes all images, writes their vectors, and says how long it took.
fn pass(encoder: &Encoder, images: &TsvReader, arguments: &Arguments) -> Result<()> {
    let started = Instant::now();
    let mut vectors = Vec::new();
    for from in (0..images.len()).step_by(arguments.batch.max(1)) {
        let rows = from..images.len().min(from + arguments.batch.max(1));
        let batch = rows.map(|row| images.decode_image(row)).collect::<Result<Vec<_>>>()?;
        vectors.extend(encoder.encode_images(&batch)?);
    }
    let seconds = started.elapsed().as_secs_f64();
    let bytes: Vec<u8> = vectors.iter().flat_map(|v| v.to_le_bytes()).collect();
    std::fs::write(&arguments.out, bytes).expect("the file can be written");
    let precision = encoder.precision().name();
    println!("{}", json!({ "images": images.len(), "dim": encoder.dim(), "precision": precision, "seconds": seconds }));
    Ok(())
}
