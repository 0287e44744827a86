//! The first convolution of an image encoder, of few channels, as a product of matrices: what libraries have for so few channels is ten
//! times slower on a GPU.

use super::layers::Conv2d;
use super::{TchResult, engine, engine_text};
use crate::error::Result;
use medtune_native::FixedLinear;
use tch::{Kind, TchError, Tensor};

/// Values of bfloat16 that are copied together, as one number of 64 bits.
const TOGETHER: i64 = 4;
/// A row is a multiple of so many values, 16 bytes, or the product is a slow one.
const ALIGNED: i64 = 8;
/// From so many channels on, libraries have convolutions that are fast.
const MANY_CHANNELS: i64 = 8;

/// A convolution of whole patches in bfloat16: the rows under its kernel, one after the other, times its weight.
#[derive(Debug)]
pub(crate) struct Patches {
    linear: FixedLinear,
    channels: i64,
    kernel: i64,
    stride: i64,
    padding: i64,
    /// Values of a row under the kernel, and of those beside it that are multiplied by 0.
    row: i64,
}

impl Patches {
    /// The convolution in this form, or none: it has many channels, or its steps are no whole numbers of 64 bits.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Engine`].
    pub(crate) fn of(conv: &Conv2d) -> Result<Option<Patches>> {
        let (out, channels, kernel, _) = conv.weight.size4().map_err(engine)?;
        if channels >= MANY_CHANNELS || channels * conv.stride % TOGETHER != 0 || conv.groups != 1 {
            return Ok(None);
        }
        let row = (kernel * channels + ALIGNED - 1) / ALIGNED * ALIGNED;
        let flat = || -> TchResult<(Tensor, Tensor)> {
            let rows = conv.weight.f_permute([0, 2, 3, 1])?.f_reshape([out, kernel, kernel * channels])?;
            let rows = rows.f_constant_pad_nd([0, row - kernel * channels])?;
            Ok((rows.f_reshape([out, kernel * row])?.f_to_kind(Kind::BFloat16)?, conv.bias.f_to_kind(Kind::BFloat16)?))
        };
        let (weight, bias) = flat().map_err(engine)?;
        let linear = FixedLinear::new(weight, bias).map_err(|text| engine_text(&text))?;
        Ok(Some(Patches { linear, channels, kernel, stride: conv.stride, padding: conv.padding, row }))
    }

    /// [B, H, W, in] to [B, H', W', out] in bfloat16.
    pub(crate) fn forward(&self, grid: &Tensor) -> TchResult<Tensor> {
        let &Patches { channels, kernel, stride, padding, row, .. } = self;
        let (b, h, w, _) = grid.size4()?;
        if h.min(w) + 2 * padding < kernel {
            let text = format!(
                "an image of {h} x {w} pixels is smaller than a patch of {kernel} x {kernel}: give the package a larger image_size"
            );
            return Err(TchError::Torch(text));
        }
        let steps = |side: i64| (side + 2 * padding - kernel) / stride + 1;
        let (down, across) = (steps(h), steps(w));
        // with room for the last row's values that count as 0
        let needed = (across - 1) * stride + (row + channels - 1) / channels;
        let width = (needed.max(w + 2 * padding) + TOGETHER - 1) / TOGETHER * TOGETHER;
        let around = Tensor::f_zeros([b, h + 2 * padding, width, channels], (Kind::BFloat16, grid.device()))?;
        around.f_narrow(1, padding, h)?.f_narrow(2, padding, w)?.f_copy_(grid)?;

        let line = width * channels / TOGETHER;
        let lines = around.f_view([b, h + 2 * padding, width * channels])?.f_view_dtype(Kind::Int64)?;
        let size = [b, down, across, kernel, row / TOGETHER];
        let strides = [(h + 2 * padding) * line, stride * line, stride * channels / TOGETHER, line, 1];
        let patches =
            lines.f_as_strided(size, strides, None)?.f_reshape([b * down * across, kernel * row / TOGETHER])?;
        let product = self.linear.forward(&patches.f_view_dtype(Kind::BFloat16)?).map_err(TchError::Torch)?;
        product.f_view([b, down, across, -1])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::params::Params;
    use tch::Device;

    const F32: (Kind, Device) = (Kind::Float, Device::Cpu);

    fn conv(out: i64, channels: i64, kernel: i64, (stride, padding): (i64, i64)) -> Conv2d {
        let mut params = Params::default();
        // as bfloat16 has them
        let rounded = |shape: &[i64]| Tensor::randn(shape, F32).to_kind(Kind::BFloat16).to_kind(Kind::Float);
        params.insert("conv.weight", rounded(&[out, channels, kernel, kernel]));
        params.insert("conv.bias", rounded(&[out]));
        Conv2d::new(&params, "conv", (stride, padding, 1)).unwrap()
    }

    #[test]
    fn it_equals_the_convolution() {
        tch::manual_seed(5);
        for (channels, kernel, stride, padding) in [(3, 7, 4, 3), (1, 4, 4, 0), (4, 3, 1, 1), (2, 5, 2, 2)] {
            let conv = conv(16, channels, kernel, (stride, padding));
            let patches = Patches::of(&conv).unwrap().unwrap();
            for (height, width) in [(32, 32), (24, 20), (7, 41), (33, 6)] {
                let pixels = Tensor::randn([2, channels, height, width], F32).to_kind(Kind::BFloat16);
                let expected = conv.forward(&pixels.to_kind(Kind::Float)).unwrap().permute([0, 2, 3, 1]);
                let found = patches.forward(&pixels.permute([0, 2, 3, 1])).unwrap().to_kind(Kind::Float);
                assert_eq!(found.size(), expected.size());
                let distance = (&found - &expected).norm() / expected.norm();
                assert!(distance.double_value(&[]) < 3e-3, "{channels} channels, {height} x {width}: {distance}");
            }
        }
    }

    #[test]
    fn an_image_smaller_than_a_patch_is_refused() {
        let patches = Patches::of(&conv(8, 4, 4, (4, 0))).unwrap().unwrap();
        for (height, width) in [(8, 3), (1, 8)] {
            let error = patches.forward(&Tensor::zeros([1, height, width, 4], F32)).unwrap_err().to_string();
            assert!(error.contains(&format!("{height} x {width}")), "{error}");
        }
    }

    #[test]
    fn others_stay_convolutions() {
        assert!(Patches::of(&conv(8, 3, 7, (2, 3))).unwrap().is_none(), "6 values a step");
        assert!(Patches::of(&conv(8, 16, 3, (2, 1))).unwrap().is_none(), "many channels");
    }
}
