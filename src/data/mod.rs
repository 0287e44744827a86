//! Image and text TSVs, class folders, labels, splits, embedding files.

pub mod constants;
pub mod embeddings;
pub mod fields;
pub mod folder;
mod index;
pub mod labels;
pub mod metadata;
pub mod overlap;
pub mod pairs;
pub mod rows;
pub mod split;
pub mod text;
pub mod tsv;

pub use constants::TextConstants;
pub use fields::read_field;
pub use folder::{FolderScan, ImageFile, scan, tree};
pub use labels::Labels;
pub use metadata::ImageMetadata;
pub use overlap::Overlap;
pub use pairs::ImageTextPairs;
pub use split::{first_alike, grouped_split, keep_most_frequent, sklearn_split, stratified_split, unique_in_order};
pub use text::{ClassRow, DescribedRow, TextContent, TextRow, read_class_rows, read_text_rows, write_text_rows};
pub use tsv::{Row, TsvReader, TsvWriter};
