//! The job kinds and the names of their inputs and outputs: the contract that job files, pipelines and schemas share.

use std::fmt;

/// What a job does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Class folders to standardised, split TSVs.
    Prepare,
    /// Fine-tunes the embedding model.
    Finetune,
    /// Images to embeddings.
    Embed,
    /// Trains a classification adapter on embeddings.
    Adapter,
    /// Embedding model + labels (+ adapter) to a classifier package.
    Assemble,
    /// Metrics of classifiers and kNN on a test split.
    Evaluate,
    /// Several of the others, wired together.
    Pipeline,
}

/// What a named input or output is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortType {
    /// One file.
    File,
    /// Images, in one file with rows (a TSV, a table, an archive) or several, or in folders; files with rows stay where they are and are read in
    /// ranges.
    Rows,
    /// A folder.
    Folder,
    /// An MLflow model package.
    Model,
}

impl PortType {
    /// The type of the outputs of other steps that an input of this type takes.
    #[must_use]
    pub fn from_output(self) -> PortType {
        if self == PortType::Rows { PortType::File } else { self }
    }
}

/// One named input or output of a kind.
#[derive(Debug, Clone, Copy)]
pub struct Port {
    /// Its name in job files.
    pub name: &'static str,
    /// What it is.
    pub port_type: PortType,
    /// Whether a job must give it (inputs; every output is always made).
    pub required: bool,
    /// One sentence for schemas and help.
    pub doc: &'static str,
}

const fn port(name: &'static str, port_type: PortType, doc: &'static str) -> Port {
    Port { name, port_type, required: true, doc }
}

const fn optional(name: &'static str, port_type: PortType, doc: &'static str) -> Port {
    Port { name, port_type, required: false, doc }
}

use PortType::{File, Folder, Model, Rows};

const PREPARE_IN: &[Port] = &[
    port("image_folder", Folder, "one sub-folder of images a class; with label_column, images in any folders"),
    port("text_constants", File, "YAML: folder_to_label, and view_labels where the text template uses {view}"),
    optional("image_metadata", File, "CSV with a row an image: which images are taken, and what is known of each"),
];
const PREPARE_OUT: &[Port] = &[
    port("train_image_tsv", File, "key and base64 JPEG of the training split"),
    port("train_text_tsv", File, "key and JSON text row of the training split"),
    port("validation_image_tsv", File, "key and base64 JPEG of the validation split"),
    port("validation_text_tsv", File, "key and JSON text row of the validation split"),
    port("test_image_tsv", File, "key and base64 JPEG of the test split"),
    port("test_text_tsv", File, "key and JSON text row of the test split"),
    port("label_file", File, "one label text a line; the line number is the class id"),
];
const FINETUNE_IN: &[Port] = &[
    port("mlflow_model_path", Model, "the base model package"),
    port("image_tsv", File, "training images"),
    port("text_tsv", File, "training texts, same keys in the same order"),
    port("eval_image_tsv", File, "validation images"),
    port("eval_text_tsv", File, "validation texts"),
    optional("eval_train_image_tsv", File, "images that kNN evaluation compares with (default: image_tsv)"),
    optional("eval_train_text_tsv", File, "texts of eval_train_image_tsv"),
    port("label_file", File, "one label text a line"),
    port("conf_files", File, "the training configuration, one YAML file"),
];
const FINETUNE_OUT: &[Port] = &[
    port("save_dir", Folder, "best and last weights, metrics as JSON lines, the resolved training configuration"),
    port("mlflow_model_folder", Model, "the base package with the fine-tuned weights in it"),
];
const EMBED_IN: &[Port] = &[
    port("image_tsv", Rows, "the images"),
    port("mlflow_model_path", Model, "the package whose encoders are used"),
    optional("label_file", File, "label texts that get vectors too"),
];
const EMBED_OUT: &[Port] =
    &[port("embeddings", Folder, "embeddings as Parquet, .npy and pickle on request, with ledger and manifest")];
const ADAPTER_IN: &[Port] = &[
    port("train_embeddings", Folder, "output of Embed on the training images"),
    port("validation_embeddings", Folder, "output of Embed on the validation images"),
    port("train_text_tsv", File, "training texts"),
    port("validation_text_tsv", File, "validation texts"),
    port("label_file", File, "one label text a line"),
];
const ADAPTER_OUT: &[Port] = &[port("adapter", Folder, "adapter.safetensors, its configuration and training curve")];
const ASSEMBLE_IN: &[Port] = &[
    port("mlflow_model_path", Model, "the embedding model package"),
    port("label_file", File, "one label text a line"),
    optional(
        "adapter",
        Folder,
        "output of Adapter, or a folder with best_metric_model.pth; without it the classifier is zero-shot",
    ),
    optional(
        "report",
        Folder,
        "output of Evaluate on the same classifier: its figures and operating points become part of the package",
    ),
];
const ASSEMBLE_OUT: &[Port] = &[port("classification_mlflow_model", Model, "the classifier package")];
const EVALUATE_IN: &[Port] = &[
    optional("zero_shot_mlflow_model", Model, "a zero-shot classifier package"),
    optional("adapter_mlflow_model", Model, "an adapter classifier package"),
    optional("train_embeddings", Folder, "with train_text_tsv: adds kNN against the training split"),
    optional("train_text_tsv", File, "training texts"),
    optional("validation_embeddings", Folder, "with validation_text_tsv: thresholds are chosen on it"),
    optional("validation_text_tsv", File, "validation texts"),
    port("test_embeddings", Folder, "output of Embed on the test images"),
    port("test_text_tsv", File, "test texts"),
    port("label_file", File, "one label text a line"),
];
const EVALUATE_OUT: &[Port] =
    &[port("report", Folder, "report.html, .md and .txt, report.json, curves.json and plots")];

impl Kind {
    /// Every kind, steps in pipeline order.
    pub const ALL: [Kind; 7] =
        [Kind::Prepare, Kind::Finetune, Kind::Embed, Kind::Adapter, Kind::Assemble, Kind::Evaluate, Kind::Pipeline];

    /// The kind's name in job files.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Kind::Prepare => "Prepare",
            Kind::Finetune => "Finetune",
            Kind::Embed => "Embed",
            Kind::Adapter => "Adapter",
            Kind::Assemble => "Assemble",
            Kind::Evaluate => "Evaluate",
            Kind::Pipeline => "Pipeline",
        }
    }

    /// The kind of that name; letter case matters in job files.
    #[must_use]
    pub fn parse(name: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|k| k.name() == name)
    }

    /// The inputs that a job of this kind takes.
    #[must_use]
    pub fn inputs(self) -> &'static [Port] {
        match self {
            Kind::Prepare => PREPARE_IN,
            Kind::Finetune => FINETUNE_IN,
            Kind::Embed => EMBED_IN,
            Kind::Adapter => ADAPTER_IN,
            Kind::Assemble => ASSEMBLE_IN,
            Kind::Evaluate => EVALUATE_IN,
            Kind::Pipeline => &[],
        }
    }

    /// The outputs that a job of this kind makes.
    #[must_use]
    pub fn outputs(self) -> &'static [Port] {
        match self {
            Kind::Prepare => PREPARE_OUT,
            Kind::Finetune => FINETUNE_OUT,
            Kind::Embed => EMBED_OUT,
            Kind::Adapter => ADAPTER_OUT,
            Kind::Assemble => ASSEMBLE_OUT,
            Kind::Evaluate => EVALUATE_OUT,
            Kind::Pipeline => &[],
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
