//! TIFF files, with the pixels of Pillow.
//!
//! The `tiff` crate unpacks strips, tiles and planes; what the samples in them mean is decided here, since it knows no
//! palettes and no transparency of grey, and cuts surplus channels out of tiles wrongly. It is therefore told that all samples are
//! grey: the tag that names their meaning is changed in a copy of the file.

use std::io::Cursor;

use image::metadata::Orientation;
use tiff::ColorType;
use tiff::decoder::{Decoder, DecodingResult, Limits};
use tiff::tags::Tag;

use super::decode::{MAX_PIXELS, RgbImage, check_pixels, xmp_orientation};
use super::jpeg::rgb_from_inverted_cmyk;
use crate::error::{Error, Result};

/// Values of the tag PhotometricInterpretation.
const WHITE_IS_ZERO: u16 = 0;
const BLACK_IS_ZERO: u16 = 1;
const RGB: u16 = 2;
const PALETTE: u16 = 3;
const CMYK: u16 = 5;
/// Values of the tag Compression that the crate unpacks: none, those of faxes, LZW, deflate (two numbers), PackBits; and JPEG.
const COMPRESSIONS: [u16; 9] = [1, 2, 3, 4, 5, 8, 32_946, 32_773, JPEG];
const JPEG: u16 = 7;
/// Value of the tag ExtraSamples: colours are multiplied by the transparency that follows.
const ASSOCIATED_ALPHA: u16 = 1;
const TAG_XMP: Tag = Tag::Unknown(700);

/// Whether `bytes` begin as a TIFF or BigTIFF file of either byte order.
pub(super) fn is_tiff(bytes: &[u8]) -> bool {
    [b"II\x2a\0", b"MM\0\x2a", b"II\x2b\0", b"MM\0\x2b"].iter().any(|magic| bytes.starts_with(*magic))
}

/// Size of the image by its header, after a check that [`decode`] knows its mode.
pub(super) fn size(bytes: &[u8]) -> Result<(usize, usize)> {
    Header::read(bytes).map(|header| (header.width, header.height))
}

/// Decodes the first image to RGB, and says how it is to be turned.
pub(super) fn decode(bytes: &[u8]) -> Result<(RgbImage, Orientation)> {
    let header = Header::read(bytes)?;
    let mut samples = header.samples(bytes)?;
    let pixels = match header.photometric {
        WHITE_IS_ZERO | BLACK_IS_ZERO => {
            let white = (1 << header.bits.min(8)) - 1;
            let inverted = header.photometric == WHITE_IS_ZERO;
            let mut levels = [0; 256];
            for (value, level) in levels.iter_mut().enumerate().take(white + 1) {
                *level = ((if inverted { white - value } else { value }) * 255 / white) as u8;
            }
            samples.chunks_exact(header.channels).flat_map(|pixel| [levels[usize::from(pixel[0])]; 3]).collect()
        }
        PALETTE => {
            let index = |pixel: &[u8]| header.palette[usize::from(pixel[0])];
            samples.chunks_exact(header.channels).flat_map(index).collect()
        }
        CMYK => {
            samples.iter_mut().for_each(|value| *value = 255 - *value);
            let inks: Vec<u8> = samples.chunks_exact(header.channels).flat_map(|pixel| &pixel[..4]).copied().collect();
            rgb_from_inverted_cmyk(&inks)
        }
        _ if header.multiplied => samples.chunks_exact(header.channels).flat_map(divided).collect(),
        _ if header.channels == 3 => samples,
        _ => samples.chunks_exact(header.channels).flat_map(|pixel| &pixel[..3]).copied().collect(),
    };
    Ok((RgbImage::new(header.width, header.height, pixels)?, header.orientation))
}

/// The colour of a pixel that was multiplied by its transparency, as Pillow divides.
fn divided(pixel: &[u8]) -> [u8; 3] {
    let alpha = u32::from(pixel[3]);
    [0, 1, 2].map(|channel| match alpha {
        0 => 0,
        _ => (u32::from(pixel[channel]) * 255 / alpha).min(255) as u8,
    })
}

/// What the tags of the first image say.
struct Header {
    width: usize,
    height: usize,
    photometric: u16,
    compression: u16,
    /// Samples of a pixel, transparency and surplus ones included.
    channels: usize,
    bits: u8,
    multiplied: bool,
    /// 2^`bits` colours, for a palette image.
    palette: Vec<[u8; 3]>,
    orientation: Orientation,
}

impl Header {
    fn read(bytes: &[u8]) -> Result<Header> {
        let mut file = Decoder::new(Cursor::new(bytes)).map_err(failure)?;
        let (width, height) = file.dimensions().map_err(failure)?;
        let (width, height) = (width as usize, height as usize);
        check_pixels(width, height)?;
        let mut all = |tag| file.find_tag_unsigned_vec::<u16>(tag).map_err(failure).map(Option::unwrap_or_default);
        let photometric = all(Tag::PhotometricInterpretation)?.first().copied().unwrap_or(BLACK_IS_ZERO);
        let compression = all(Tag::Compression)?.first().copied().unwrap_or(1);
        let channels = usize::from(all(Tag::SamplesPerPixel)?.first().copied().unwrap_or(1));
        let bits = all(Tag::BitsPerSample)?.first().copied().unwrap_or(1);
        let extra = all(Tag::ExtraSamples)?;
        let orientation =
            all(Tag::Orientation)?.first().and_then(|&value| Orientation::from_exif(value.min(255) as u8));
        if all(Tag::SampleFormat)?.iter().any(|&format| format != 1) {
            return Err(refused("has floating-point or signed pixels"));
        }
        let colours = match photometric {
            WHITE_IS_ZERO | BLACK_IS_ZERO | PALETTE => 1,
            RGB => 3,
            CMYK => 4,
            6 => return Err(refused("stores its colours as YCbCr")),
            8..=10 => return Err(refused("stores its colours as Lab")),
            other => return Err(refused(&format!("has the photometric interpretation {other}, which is not known,"))),
        };
        let known = match bits {
            1 | 2 | 4 => colours == 1 && channels == 1,
            8 => true,
            16 => photometric != PALETTE,
            _ => false,
        };
        if !known || channels != colours + extra.len() {
            return Err(refused(&format!("has {channels} channels of {bits} bits")));
        }
        // its decoder gives the channels of a colour space of its own, and none beyond
        if !COMPRESSIONS.contains(&compression) || compression == JPEG && (channels != colours || colours == 4) {
            return Err(refused(&format!("is compressed in a way that is not known (number {compression})")));
        }
        let mut palette = Vec::new();
        if photometric == PALETTE {
            let map = all(Tag::ColorMap)?;
            let size = 1 << bits;
            if map.len() < 3 * size {
                return Err(Error::data("the TIFF file has no palette for its pixels: replace the image"));
            }
            palette = (0..size).map(|i| [0, 1, 2].map(|channel| (map[channel * size + i] >> 8) as u8)).collect();
        }
        let orientation = orientation.or_else(|| xmp_orientation(&file.get_tag_u8_vec(TAG_XMP).ok()?));
        Ok(Header {
            width,
            height,
            photometric,
            compression,
            channels,
            bits: bits as u8,
            multiplied: colours == 3 && extra.first() == Some(&ASSOCIATED_ALPHA),
            palette,
            orientation: orientation.unwrap_or(Orientation::NoTransforms),
        })
    }

    /// The samples of all pixels, one after the other: 16 bits as 8, fewer than 8 not scaled up.
    fn samples(&self, bytes: &[u8]) -> Result<Vec<u8>> {
        let mut grey;
        let mut file = bytes;
        if self.compression != JPEG {
            grey = bytes.to_vec();
            set_grey(&mut grey).ok_or_else(damaged)?;
            file = &grey;
        }
        let mut limits = Limits::default();
        // eight bytes a pixel is the most that a 16-bit RGBA image needs
        limits.decoding_buffer_size = MAX_PIXELS * 8;
        limits.intermediate_buffer_size = MAX_PIXELS * 8;
        let mut decoder = Decoder::new(Cursor::new(file)).map_err(failure)?.with_limits(limits);
        let color = decoder.colortype().map_err(failure)?;
        if usize::from(color.num_samples()) != self.channels {
            return Err(refused("has channels that do not fit its colours"));
        }
        let mut read = DecodingResult::U8(Vec::new());
        let layout = decoder.read_image_to_buffer(&mut read).map_err(failure)?;
        if read.as_buffer(0).as_bytes().len() < layout.complete_len {
            return Err(Error::data("the TIFF file has too many channels for its size: make the image smaller"));
        }
        let rounded = matches!(color, ColorType::Gray(_));
        let samples: Vec<u8> = match read {
            DecodingResult::U8(values) if self.bits < 8 => self.unpacked(&values),
            DecodingResult::U8(values) => values,
            DecodingResult::U16(values) if rounded => {
                values.iter().map(|&v| ((u32::from(v) + 128) / 257) as u8).collect()
            }
            DecodingResult::U16(values) => values.iter().map(|&v| (v >> 8) as u8).collect(),
            _ => return Err(refused("has pixels that are no numbers of 8 or 16 bits")),
        };
        let pixels = self.width * self.height;
        if samples.len() != pixels * self.channels {
            return Err(damaged());
        }
        if layout.planes < 2 {
            return Ok(samples);
        }
        Ok((0..pixels).flat_map(|at| samples.iter().skip(at).step_by(pixels).copied()).collect())
    }

    /// Rows of packed values as one byte each.
    fn unpacked(&self, packed: &[u8]) -> Vec<u8> {
        let bits = usize::from(self.bits);
        let mask = (1u8 << bits) - 1;
        let row = |bytes: &[u8]| -> Vec<u8> {
            let value = |x: usize| bytes[x * bits / 8] >> (8 - bits - x * bits % 8) & mask;
            (0..self.width).map(value).collect()
        };
        packed.chunks_exact((self.width * bits).div_ceil(8)).flat_map(row).collect()
    }
}

/// Sets the tag PhotometricInterpretation of the first image to "grey, black is zero". `None` where the tags cannot be followed.
fn set_grey(bytes: &mut [u8]) -> Option<()> {
    let little = bytes.first()? == &b'I';
    let big = bytes.get(2..4)?.contains(&0x2b);
    let number = |bytes: &[u8], at: usize, length: usize| -> Option<usize> {
        let field = bytes.get(at..at.checked_add(length)?)?;
        let digits = |value: usize, byte: &u8| value << 8 | usize::from(*byte);
        Some(if little { field.iter().rev().fold(0, digits) } else { field.iter().fold(0, digits) })
    };
    let (start, count_length, entry_length) =
        if big { (number(bytes, 8, 8)?, 8, 20) } else { (number(bytes, 4, 4)?, 2, 12) };
    let entries = number(bytes, start, count_length)?;
    for entry in 0..entries {
        let at = start.checked_add(count_length)?.checked_add(entry.checked_mul(entry_length)?)?;
        if number(bytes, at, 2)? == usize::from(Tag::PhotometricInterpretation.to_u16()) {
            // a number of two bytes, at the beginning of the field, which is the last of the entry
            let field = if big { at + 12 } else { at + 8 };
            let value = if little { BLACK_IS_ZERO.to_le_bytes() } else { BLACK_IS_ZERO.to_be_bytes() };
            bytes.get_mut(field..field + 2)?.copy_from_slice(&value);
            return Some(());
        }
    }
    None
}

fn refused(what: &str) -> Error {
    Error::data(format!(
        "the TIFF file {what} and is not read: convert it to grey or RGB of 8 or 16 bits, with LZW or deflate"
    ))
}

fn damaged() -> Error {
    Error::data("the image cannot be decoded, it is truncated or damaged: replace it")
}

fn failure(error: tiff::TiffError) -> Error {
    if let tiff::TiffError::UnsupportedError(_) = error {
        return refused("is of a kind that is not known").with_source(error);
    }
    damaged().with_source(error)
}
