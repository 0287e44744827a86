//! From bytes of red, green and blue to the network's input, on the device that computes.

use crate::error::{Error, Result};
use crate::imaging::PixelContract;
use crate::model::{TchResult, engine, engine_text};
use tch::{Device, Kind, Tensor};

/// Normalises images; on a GPU, by the same divisions in f32 as on the CPU, so that the values are the same to the bit.
#[derive(Debug)]
pub(super) struct Pixels {
    contract: PixelContract,
    gpu: Option<Gpu>,
}

#[derive(Debug)]
struct Gpu {
    device: Device,
    /// 255. A tensor, since libtorch multiplies by the inverse of a number.
    scale: Tensor,
    mean: Tensor,
    std: Tensor,
}

impl Pixels {
    pub(super) fn new(contract: PixelContract, device: Device) -> Result<Pixels> {
        let gpu = device.is_cuda().then(|| Gpu::new(&contract, device)).transpose().map_err(engine)?;
        Ok(Pixels { contract, gpu })
    }

    pub(super) fn contract(&self) -> &PixelContract {
        &self.contract
    }

    /// Images of [H, W, 3] bytes to [B, 3, H, W] in f32.
    pub(super) fn normalised(&self, rgb: &[u8]) -> Result<Tensor> {
        let length = self.contract.tensor_len();
        if length == 0 || !rgb.len().is_multiple_of(length) {
            return Err(Error::internal(format!("{} bytes are no images of {length}", rgb.len())));
        }
        let (height, width) = (self.contract.height() as i64, self.contract.width() as i64);
        let count = (rgb.len() / length) as i64;
        match &self.gpu {
            Some(gpu) => {
                let bytes = medtune_native::upload(gpu.device, rgb, &[count, height, width, 3]);
                gpu.normalised(&bytes.map_err(|text| engine_text(&text))?).map_err(engine)
            }
            None => {
                let mut values = vec![0f32; rgb.len()];
                // by this thread alone: the others decode, and would finish what they have first
                for (out, rgb) in values.chunks_exact_mut(length).zip(rgb.chunks_exact(length)) {
                    self.contract.normalise_rgb(rgb, out);
                }
                Tensor::f_from_slice(&values).and_then(|t| t.f_view([count, 3, height, width])).map_err(engine)
            }
        }
    }
}

impl Gpu {
    fn new(contract: &PixelContract, device: Device) -> TchResult<Gpu> {
        let there = |values: &[f32]| Tensor::f_from_slice(values)?.f_to_device(device);
        Ok(Gpu { device, scale: there(&[255.0])?, mean: there(&contract.mean)?, std: there(&contract.std)? })
    }

    /// Bytes [B, H, W, 3] to [B, 3, H, W], still in the order of the bytes.
    fn normalised(&self, bytes: &Tensor) -> TchResult<Tensor> {
        let values = bytes.f_to_kind(Kind::Float)?.f_div_(&self.scale)?.f_sub_(&self.mean)?.f_div_(&self.std)?;
        values.f_permute([0, 3, 1, 2])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_give_the_same_bits() {
        let contract = PixelContract { image_size: [16, 16], ..PixelContract::default() };
        let rgb: Vec<u8> = (0..2 * contract.tensor_len()).map(|i| (i / 3 % 256) as u8).collect();
        let pixels = Pixels::new(contract.clone(), Device::Cpu).unwrap();
        let expected = pixels.normalised(&rgb).unwrap();
        let mut single = vec![0.0; contract.tensor_len()];
        let image = crate::imaging::RgbImage::new(16, 16, rgb[contract.tensor_len()..].to_vec()).unwrap();
        contract.normalise(&image, &mut single).unwrap();
        assert!(expected.get(1).equal(&Tensor::from_slice(&single).view([3, 16, 16])));
        // what a GPU does, here
        let bytes = Tensor::from_slice(&rgb).view([2, 16, 16, 3]);
        let found = Gpu::new(&contract, Device::Cpu).unwrap().normalised(&bytes).unwrap();
        assert!(found.contiguous().equal(&expected));
        assert!(pixels.normalised(&rgb[1..]).is_err());
    }
}
