//! A training step: both towers, the loss, the backward pass, fused AdamW; of a random model, on fixed pixels and texts.
//!
//! `cargo bench --bench train_step` times five steps and prints one JSON object. `scripts/bench` runs it side by side with
//! PyTorch: `--export` writes the model for the peer, `--ask` takes a step for every line of the standard input.

use clap::{Parser, ValueEnum};
use medtune::Result;
use medtune::config::compute::Compute;
use medtune::config::parse_yaml;
use medtune::infer::device;
use medtune::model::config::ModelConfig;
use medtune::model::unicl::UniCl;
use medtune::model::{init, params::Params, weights};
use medtune::train::loss::{Targets, unicl_loss};
use medtune::train::optimizer::{AdamW, Rules, Settings};
use serde_json::json;
use std::io::BufRead;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tch::{Device, Kind, Tensor};

#[derive(Debug, Parser)]
struct Arguments {
    #[arg(long, value_enum, default_value_t = Precision::F32)]
    precision: Precision,
    /// Image-text pairs a step.
    #[arg(long, default_value_t = 2)]
    batch: i64,
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// cpu or cuda.
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Divides the widths of MedImageInsight.
    #[arg(long, default_value_t = 2)]
    divide: i64,
    /// Recompute blocks in the backward pass.
    #[arg(long)]
    checkpoint: bool,
    /// Timed steps, after one that is not.
    #[arg(long, default_value_t = 5)]
    steps: usize,
    /// A step for every line of the standard input instead.
    #[arg(long)]
    ask: bool,
    /// Weights to start from; random ones otherwise.
    #[arg(long)]
    weights: Option<PathBuf>,
    /// Write config.yaml and weights.safetensors into this folder, and do nothing else.
    #[arg(long)]
    export: Option<PathBuf>,
    /// What `cargo bench` adds.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, ValueEnum)]
enum Precision {
    F32,
    Bf16,
}

/// MedImageInsight with its widths divided, and as many heads and groups fewer; without drop path.
fn sizes(divide: i64) -> Result<ModelConfig> {
    let origin = "benches/medimageinsight.yaml";
    let mut config = ModelConfig::from_yaml(&parse_yaml(include_str!("medimageinsight.yaml"), origin)?, origin)?;
    let image = &mut config.image;
    for list in [&mut image.dim_embed, &mut image.num_heads, &mut image.num_groups] {
        list.iter_mut().for_each(|n| *n /= divide);
    }
    image.drop_path_rate = 0.0;
    config.text.width /= divide;
    config.text.heads /= divide;
    config.projection /= divide;
    Ok(config)
}

/// Floating-point operations of one pair's forward pass that no implementation can do without: work on real tokens.
fn forward_flops(config: &ModelConfig) -> f64 {
    let image = &config.image;
    let (mut side, mut total, mut before) = (image.image_size[0], 0, 3);
    for i in 0..image.dim_embed.len() {
        let (c, kernel) = (image.dim_embed[i], image.patch_size[i]);
        side = (side + 2 * image.patch_padding[i] - kernel) / image.patch_stride[i] + 1;
        let tokens = side * side;
        total += 2 * tokens * c * before * kernel * kernel;
        // linear layers, depthwise convolutions, and the products of both attentions
        let block = 2 * tokens * (12 * c * c + 2 * 9 * c);
        let attention = 4 * tokens * c * (image.window_size.pow(2) + c / image.num_groups[i]);
        total += image.depths[i] * (2 * block + attention);
        before = c;
    }
    let (w, tokens) = (config.text.width, TOKENS);
    total += config.text.layers * (2 * tokens * 12 * w * w + 4 * tokens * tokens * w);
    total as f64
}

const TOKENS: i64 = 8;

struct Step {
    model: UniCl,
    optimizer: AdamW,
    pixels: Tensor,
    ids: Tensor,
    targets: Targets,
    precision: Precision,
    device: Device,
}

impl Step {
    fn new(arguments: &Arguments, config: &ModelConfig, params: &Params, device: Device) -> Result<Step> {
        let batch = arguments.batch;
        let [height, width] = config.image.image_size;
        let count = batch * 3 * height * width;
        let pixels: Vec<f32> = (0..count as u32)
            .map(|i| (f64::from(i.wrapping_mul(2_654_435_761)) / 4_294_967_296.0 * 4.0 - 2.0) as f32)
            .collect();
        let ids: Vec<i64> = (0..batch)
            .flat_map(|row| (0..TOKENS).map(move |i| if i == 0 { 49406 } else { row * 6 + i - 1 + 320 }))
            .enumerate()
            .map(|(i, id)| if i as i64 % TOKENS == TOKENS - 1 { 49407 } else { id })
            .collect();
        let settings = Settings { lr: 1e-5, weight_decay: 0.2, ..Settings::default() };
        Ok(Step {
            model: UniCl::new(config, params)?,
            optimizer: AdamW::new(&params.entries(), settings, &Rules::default())?,
            pixels: Tensor::from_slice(&pixels).view([batch, 3, height, width]).to_device(device),
            ids: Tensor::from_slice(&ids).view([batch, TOKENS]).to_device(device),
            targets: Targets { groups: (0..batch).collect(), mixed: Vec::new() },
            precision: arguments.precision,
            device,
        })
    }

    fn run(&mut self) -> Result<(Duration, f64)> {
        let started = Instant::now();
        self.optimizer.zero_grad()?;
        let (images, texts) = {
            let bf16 = self.precision == Precision::Bf16;
            let _autocast =
                bf16.then(|| medtune_native::Autocast::enter(self.device.is_cuda(), true).expect("autocast exists"));
            let images = self.model.encode_image(&self.pixels, None)?;
            (images, self.model.encode_text(&self.ids, &self.ids.ones_like())?)
        };
        let loss = unicl_loss(&images, &texts, &self.model.logit_scale(), &self.targets)?;
        loss.backward();
        self.optimizer.step(|lr| lr)?;
        // reading the value waits for the device
        let value = loss.to_kind(Kind::Double).double_value(&[]);
        Ok((started.elapsed(), value))
    }
}

/// Peak resident memory of this process, GiB.
fn peak_rss() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap_or_default();
    let kib: f64 = line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).unwrap_or(f64::NAN);
    kib / 1024.0 / 1024.0
}

/// Processor time of this process so far, seconds.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    fields.skip(11).take(2).filter_map(|n| n.parse::<f64>().ok()).sum::<f64>() / 100.0
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let compute = Compute { device: arguments.device.clone(), threads: arguments.threads, ..Compute::default() };
    let device = device::select(&compute)?;
    let mut config = sizes(arguments.divide)?;
    if let Some(folder) = &arguments.export {
        let yaml = serde_yaml_ng::to_string(&config.to_yaml()).expect("a configuration is YAML");
        std::fs::write(folder.join("config.yaml"), yaml).expect("the folder can be written to");
        return weights::write(&folder.join("weights.safetensors"), &init::random(&config, 1)?);
    }
    config.image.activation_checkpoint = arguments.checkpoint;
    let params = match &arguments.weights {
        Some(path) => weights::read(path, &config)?,
        None => init::random(&config, 1)?,
    };
    let mut params = params.to_device(device)?;
    params.set_requires_grad(true)?;
    let mut step = Step::new(&arguments, &config, &params, device)?;
    // the backward pass is twice the work of the forward pass
    let gflop = 3e-9 * arguments.batch as f64 * forward_flops(&config);
    if arguments.ask {
        println!("{}", json!({ "ready": true }));
        for _ in std::io::stdin().lock().lines() {
            let before = cpu_seconds();
            let (time, loss) = step.run()?;
            let cpu = cpu_seconds() - before;
            println!("{}", json!({ "seconds": time.as_secs_f64(), "cpu_seconds": cpu, "loss": loss }));
        }
        println!("{}", json!({ "peak_rss_gib": peak_rss(), "step_gflop": gflop }));
        return Ok(());
    }
    step.run()?;
    let mut times: Vec<f64> =
        (0..arguments.steps.max(1)).map(|_| Ok(step.run()?.0.as_secs_f64())).collect::<Result<_>>()?;
    times.sort_by(f64::total_cmp);
    let (least, median) = (times[0], times[times.len() / 2]);
    println!(
        "{}",
        json!({
            "precision": format!("{:?}", arguments.precision).to_lowercase(),
            "device": device::name(device),
            "batch": arguments.batch,
            "threads": arguments.threads,
            "seconds_min": least,
            "seconds_median": median,
            "images_per_second": arguments.batch as f64 / least,
            "gflop_per_second": gflop / least,
            "peak_rss_gib": peak_rss(),
        })
    );
    Ok(())
}
