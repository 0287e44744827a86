//! A model's parameters by their upstream names.

use super::{TchResult, engine};
use crate::error::{Error, Result};
use std::collections::BTreeMap;
use tch::{Device, Kind, Tensor};

/// Parameters in the order of their names.
#[derive(Debug, Default)]
pub struct Params {
    tensors: BTreeMap<String, Tensor>,
}

impl Params {
    /// Adds or replaces one.
    pub fn insert(&mut self, name: impl Into<String>, tensor: Tensor) {
        self.tensors.insert(name.into(), tensor);
    }

    /// A shallow clone: in-place updates of the parameter are seen through it.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Package`] when there is none of that name.
    pub fn get(&self, name: &str) -> Result<Tensor> {
        let tensor = self.tensors.get(name);
        tensor.map(Tensor::shallow_clone).ok_or_else(|| Error::package(format!("the weights lack parameter '{name}'")))
    }

    /// Takes one out, so that its memory is free when the taker lets go of it.
    ///
    /// # Errors
    /// As [`Params::get`].
    pub fn take(&mut self, name: &str) -> Result<Tensor> {
        let tensor = self.get(name)?;
        self.tensors.remove(name);
        Ok(tensor)
    }

    /// Casts all but those that `keep` answers to.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Engine`] when memory does not suffice.
    pub fn cast(&mut self, kind: Kind, keep: impl Fn(&str) -> bool) -> Result<()> {
        for (_, tensor) in self.tensors.iter_mut().filter(|(name, _)| !keep(name)) {
            *tensor = tensor.f_to_kind(kind).map_err(engine)?;
        }
        Ok(())
    }

    /// Names and tensors, in the order of the names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.tensors.iter().map(|(n, t)| (n.as_str(), t))
    }

    /// Names and shallow clones, for an optimizer.
    #[must_use]
    pub fn entries(&self) -> Vec<(String, Tensor)> {
        self.tensors.iter().map(|(n, t)| (n.clone(), t.shallow_clone())).collect()
    }

    /// How many numbers there are in all.
    #[must_use]
    pub fn count(&self) -> usize {
        self.tensors.values().map(Tensor::numel).sum()
    }

    /// Moves every parameter to `device`.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Engine`], e.g. when the device's memory does not suffice.
    pub fn to_device(self, device: Device) -> Result<Params> {
        let moved = self.tensors.into_iter().map(|(n, t)| Ok((n, t.f_to_device(device)?)));
        Ok(Params { tensors: moved.collect::<TchResult<_>>().map_err(engine)? })
    }

    /// Marks every parameter as trained (`true`) or fixed.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Engine`].
    pub fn set_requires_grad(&mut self, on: bool) -> Result<()> {
        for tensor in self.tensors.values_mut() {
            let _ = tensor.f_set_requires_grad(on).map_err(engine)?;
        }
        Ok(())
    }
}
