//! Lists of prompt templates that a job can name. `{}` stands for the label text, once in every template.
//!
//! The lists are part of a training's definition: changing one changes what a job file means, so a new list gets a new name.

/// The default: plain wordings that fit radiology, pathology, endoscopy and dermatology alike. The first is the text of
/// serving.
pub const MEDICAL: [&str; 4] = ["{}.", "an image of {}.", "a medical image showing {}.", "findings: {}."];

/// What the original training code draws from: the bare label and the 80 templates that CLIP was evaluated with on ImageNet,
/// mistakes in the English included.
pub const IMAGENET: [&str; 81] = [
    "{}.",
    "a photo of a {}.",
    "a bad photo of a {}.",
    "a photo of many {}.",
    "a sculpture of a {}.",
    "a photo of the hard to see {}.",
    "a low resolution photo of the {}.",
    "a rendering of a {}.",
    "graffiti of a {}.",
    "a bad photo of the {}.",
    "a cropped photo of the {}.",
    "a tattoo of a {}.",
    "the embroidered {}.",
    "a photo of a hard to see {}.",
    "a bright photo of a {}.",
    "a photo of a clean {}.",
    "a photo of a dirty {}.",
    "a dark photo of the {}.",
    "a drawing of a {}.",
    "a photo of my {}.",
    "the plastic {}.",
    "a photo of the cool {}.",
    "a close-up photo of a {}.",
    "a black and white photo of the {}.",
    "a painting of the {}.",
    "a painting of a {}.",
    "a pixelated photo of the {}.",
    "a sculpture of the {}.",
    "a bright photo of the {}.",
    "a cropped photo of a {}.",
    "a plastic {}.",
    "a photo of the dirty {}.",
    "a jpeg corrupted photo of a {}.",
    "a blurry photo of the {}.",
    "a photo of the {}.",
    "a good photo of the {}.",
    "a rendering of the {}.",
    "a {} in a video game.",
    "a photo of one {}.",
    "a doodle of a {}.",
    "a close-up photo of the {}.",
    "the origami {}.",
    "the {} in a video game.",
    "a sketch of a {}.",
    "a doodle of the {}.",
    "a origami {}.",
    "a low resolution photo of a {}.",
    "the toy {}.",
    "a rendition of the {}.",
    "a photo of the clean {}.",
    "a photo of a large {}.",
    "a rendition of a {}.",
    "a photo of a nice {}.",
    "a photo of a weird {}.",
    "a blurry photo of a {}.",
    "a cartoon {}.",
    "art of a {}.",
    "a sketch of the {}.",
    "a embroidered {}.",
    "a pixelated photo of a {}.",
    "itap of the {}.",
    "a jpeg corrupted photo of the {}.",
    "a good photo of a {}.",
    "a plushie {}.",
    "a photo of the nice {}.",
    "a photo of the small {}.",
    "a photo of the weird {}.",
    "the cartoon {}.",
    "art of the {}.",
    "a drawing of the {}.",
    "a photo of the large {}.",
    "a black and white photo of a {}.",
    "the plushie {}.",
    "a dark photo of a {}.",
    "itap of a {}.",
    "graffiti of the {}.",
    "a toy {}.",
    "itap of my {}.",
    "a photo of a cool {}.",
    "a photo of a small {}.",
    "a tattoo of the {}.",
];

/// Names that [`preset`] knows; the first is the default.
pub const NAMES: [&str; 2] = ["medical", "imagenet"];

/// The templates of the list `name`, or `None` when there is no such list.
#[must_use]
pub fn preset(name: &str) -> Option<&'static [&'static str]> {
    match name {
        "medical" => Some(&MEDICAL),
        "imagenet" => Some(&IMAGENET),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_template_takes_the_label_once() {
        for name in NAMES {
            let templates = preset(name).unwrap();
            assert!(templates.iter().all(|t| t.matches("{}").count() == 1 && t.ends_with('.')), "{name}");
            assert_eq!(
                templates.iter().collect::<HashSet<_>>().len(),
                templates.len(),
                "{name}: a template is there twice"
            );
            // the text of serving must be among those of training
            assert_eq!(templates[0], "{}.");
        }
        assert_eq!(preset("imagenet").unwrap().len(), 81);
        assert!(preset("Medical").is_none());
    }
}
