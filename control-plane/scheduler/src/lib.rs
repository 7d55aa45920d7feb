//! The scheduler: plugins that filter and score nodes, a queue, and a binding.
