//! The tensors of a model, by the names of either kind of file.

use std::cell::RefCell;
use std::collections::BTreeSet;

use kedge_formats::{Gguf, Tensor, Tensors};

use crate::EngineError;

/// Where a graph's weights are read from.
pub(crate) struct Source {
    pub(super) tensors: Tensors,
    /// Whether they are called as GGUF has it, or as transformers.
    pub(super) is_gguf: bool,
    /// Names of those that were asked for.
    used: RefCell<BTreeSet<String>>,
}

impl Source {
    /// Those of safetensors.
    pub(crate) fn folder(tensors: Tensors) -> Self {
        Self { tensors, is_gguf: false, used: RefCell::default() }
    }

    /// Those of a GGUF file.
    pub(crate) fn gguf(file: &Gguf) -> Self {
        Self { tensors: file.tensors.clone(), is_gguf: true, used: RefCell::default() }
    }

    /// The tensor of that name and shape.
    pub(super) fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor, EngineError> {
        let tensor = self.tensors.get(name, shape)?;
        self.used.borrow_mut().insert(name.to_owned());
        Ok(tensor)
    }

    /// Refuses what a GGUF file has and nobody asked for, but for `known`. Files of Hugging Face have tensors that nobody
    /// needs; in GGUF each has a use, if only for a model that is not this.
    pub(super) fn all_used(&self, known: &[&str], reason: &str) -> Result<(), EngineError> {
        let used = self.used.borrow();
        match self.tensors.names().find(|name| !used.contains(*name) && !known.contains(name)) {
            Some(name) if self.is_gguf => Err(self.tensors.wrong(name, reason).into()),
            _ => Ok(()),
        }
    }
}
