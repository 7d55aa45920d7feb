//! A model as a list of operations on named values, before anybody knows how many tokens come.
//!
//! [`Builder`] is how model families ([`crate::model`]) write themselves down; [`crate::plan`] makes a plan of a graph
//! for one shape; a [`crate::backend`] runs plans. Operations are few and fused where every model fuses them, and say
//! what is computed, never how. What must hold: an operation reads only values that an earlier one wrote.
//! Not here: numbers, devices, shapes.

use kedge_formats::Tensor;

/// Tokens in one page of the key and value store.
pub const PAGE_TOKENS: usize = 32;

/// The index of a value in [`Graph::values`]; in a plan, of the buffer that holds it.
pub type Value = usize;

/// The index of a tensor in [`Graph::weights`].
pub type Weight = usize;

/// What a value has one vector for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Per {
    /// Each token of a step.
    Row,
    /// Each answer that is asked for: a text's vector, or the next token's logits.
    Output,
}

/// The size of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// What there is one vector for.
    pub per: Per,
    /// Numbers in that vector.
    pub width: usize,
}

/// How the vectors of the tokens become the one of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// The mean over the tokens.
    Mean,
    /// The vector of the first token.
    Cls,
    /// That of the last token.
    Last,
    /// For each dimension the largest over the tokens.
    Max,
}

/// A function of each number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x/2 · (1 + erf(x/√2))`.
    Gelu,
    /// Its approximation by tanh.
    GeluTanh,
    /// `x / (1 + e^−x)`.
    Silu,
}

/// Scaling of vectors to a common size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Norm {
    /// Mean to zero, variance to one, then scale and shift.
    Layer {
        /// The scale.
        gamma: Weight,
        /// The shift.
        beta: Weight,
    },
    /// Root of the mean square to one, then the scale.
    Rms {
        /// The scale.
        gamma: Weight,
        /// Whether one is added to the scale (Gemma).
        plus_one: bool,
    },
}

/// One matrix of a product: `x Wᵀ + b`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// `[outputs, inputs]`.
    pub weight: Weight,
    /// `[outputs]`.
    pub bias: Option<Weight>,
}

/// The matrices of one expert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expert {
    /// `[inner, width]`.
    pub gate: Weight,
    /// `[inner, width]`.
    pub up: Weight,
    /// `[width, inner]`.
    pub down: Weight,
}

/// Heads of attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub query: usize,
    /// Key and value heads; each serves as many query heads as the other.
    pub key: usize,
    /// Width of a head.
    pub width: usize,
}

impl Heads {
    /// Width of queries, keys and values of one token, one after the other.
    pub fn qkv(self) -> usize {
        (self.query + 2 * self.key) * self.width
    }
}

/// Which two numbers of a head a rotation turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pairs {
    /// `i` and `i + half` (GPT-NeoX, and everything from Hugging Face).
    Halves,
    /// `2i` and `2i + 1` (the original Llama, and its GGUF files).
    Neighbours,
}

/// Rotary position embedding.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Radians per position for each pair; twice as many numbers of a head are turned, from its beginning.
    pub frequencies: Vec<f64>,
    /// Which numbers are a pair.
    pub pairs: Pairs,
    /// What the turned numbers are multiplied by (YaRN, LongRoPE); usually one.
    pub magnitude: f64,
}

/// One operation.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// The vector of each token, plus those of its position and type where there are such.
    Embed {
        /// `[vocabulary, width]`.
        words: Weight,
        /// `[positions, width]`.
        positions: Option<Weight>,
        /// `[types, width]`.
        types: Option<Weight>,
        /// What the sum is multiplied by.
        scale: f64,
        /// The vectors.
        out: Value,
    },
    /// A norm of `x`, with `residual` added first where there is one.
    Norm {
        /// What is scaled.
        x: Value,
        /// Added to it first.
        residual: Option<Value>,
        /// How.
        norm: Norm,
        /// Added to the variance or mean square.
        epsilon: f64,
        /// Where the sum is kept too, if it is.
        sum: Option<Value>,
        /// The scaled vectors.
        out: Value,
    },
    /// Products with one or more matrices, side by side in `out`.
    Linear {
        /// What is multiplied.
        x: Value,
        /// By what.
        parts: Vec<Part>,
        /// Applied at the end.
        activation: Option<Activation>,
        /// The products.
        out: Value,
    },
    /// Attention of the tokens of a sequence to each other, in both directions.
    Attend {
        /// Queries, keys and values.
        qkv: Value,
        /// Their heads.
        heads: Heads,
        /// Query heads' sums.
        out: Value,
    },
    /// Turns queries and keys by their positions and puts keys and values into the sequence's pages.
    Place {
        /// Queries, keys and values.
        qkv: Value,
        /// Their heads.
        heads: Heads,
        /// Norms of each query and key head before they are turned, by weights as wide as a head.
        norms: Option<(Norm, Norm)>,
        /// Added to the mean square in those.
        epsilon: f64,
        /// How they are turned; none where positions come otherwise.
        rope: Option<Rope>,
        /// Whose pages.
        layer: usize,
        /// The turned queries.
        out: Value,
    },
    /// Attention of each query to the pages of its sequence, up to itself.
    Paged {
        /// Turned queries.
        q: Value,
        /// Their heads.
        heads: Heads,
        /// What the products are multiplied by.
        scale: f64,
        /// How far back is looked; none for all the way.
        window: Option<usize>,
        /// Products are bent to lie within plus and minus this, by tanh.
        softcap: Option<f64>,
        /// Whose pages.
        layer: usize,
        /// Query heads' sums.
        out: Value,
    },
    /// `activation(first half) · second half`.
    Gate {
        /// Both halves side by side.
        x: Value,
        /// Of the first.
        activation: Activation,
        /// Half as wide.
        out: Value,
    },
    /// A mixture of experts, each a gated feed-forward part; the best few for each token are weighed and added.
    Experts {
        /// What goes in.
        x: Value,
        /// Logits of the experts for each token.
        router: Value,
        /// The feed-forward parts.
        experts: Vec<Expert>,
        /// Experts for each token.
        used: usize,
        /// Whether the chosen experts' weights are scaled to a sum of one.
        normalize: bool,
        /// In the feed-forward parts.
        activation: Activation,
        /// The sums.
        out: Value,
    },
    /// `x + y`.
    Add {
        /// One.
        x: Value,
        /// The other.
        y: Value,
        /// The sum.
        out: Value,
    },
    /// The rows whose answers are asked for.
    Take {
        /// All rows.
        x: Value,
        /// One for each output.
        out: Value,
    },
    /// Bends numbers to lie within plus and minus a bound, by tanh.
    Softcap {
        /// What is bent.
        x: Value,
        /// The bound.
        bound: f64,
        /// The bent.
        out: Value,
    },
    /// Tokens to one vector for each sequence.
    Pool {
        /// Vectors of tokens.
        x: Value,
        /// How.
        pooling: Pooling,
        /// One for each sequence.
        out: Value,
    },
    /// Every vector scaled to length one.
    Normalize {
        /// Any vectors.
        x: Value,
        /// The same, of length one.
        out: Value,
    },
}

/// What an operation does with a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// It reads it.
    Read,
    /// It writes it.
    Write,
}

impl Op {
    /// Visits every value that the operation names; the one list of them.
    pub fn visit(&mut self, visit: &mut dyn FnMut(Access, &mut Value)) {
        let (reads, writes): ([Option<&mut Value>; 2], [Option<&mut Value>; 2]) = match self {
            Op::Embed { out, .. } => ([None, None], [Some(out), None]),
            Op::Norm { x, residual, sum, out, .. } => ([Some(x), residual.as_mut()], [sum.as_mut(), Some(out)]),
            Op::Attend { qkv: x, out, .. }
            | Op::Place { qkv: x, out, .. }
            | Op::Linear { x, out, .. }
            | Op::Paged { q: x, out, .. }
            | Op::Gate { x, out, .. }
            | Op::Take { x, out }
            | Op::Softcap { x, out, .. }
            | Op::Pool { x, out, .. }
            | Op::Normalize { x, out } => ([Some(x), None], [Some(out), None]),
            Op::Experts { x, router: y, out, .. } | Op::Add { x, y, out } => ([Some(x), Some(y)], [Some(out), None]),
        };
        reads.into_iter().flatten().for_each(|value| visit(Access::Read, value));
        writes.into_iter().flatten().for_each(|value| visit(Access::Write, value));
    }

    /// The values it reads, or writes.
    pub fn values(&self, wanted: Access) -> Vec<Value> {
        let mut found = Vec::new();
        self.clone().visit(&mut |access, value| {
            if access == wanted {
                found.push(*value);
            }
        });
        found
    }
}

/// The shape of a store of keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pages {
    /// Layers that attend.
    pub layers: usize,
    /// Key heads of each.
    pub heads: usize,
    /// Width of a head.
    pub width: usize,
}

impl Pages {
    /// Keys and values that one page holds.
    pub fn values(self) -> usize {
        2 * self.layers * self.heads * self.width * PAGE_TOKENS
    }
}

/// A model.
#[derive(Debug)]
pub struct Graph {
    /// The operations in order.
    pub ops: Vec<Op>,
    /// The size of every value.
    pub values: Vec<Size>,
    /// All tensors.
    pub weights: Vec<Tensor>,
    /// Where the answers are: one vector for each output.
    pub result: Value,
    /// Keys and values that are kept from step to step; none for models that see a whole text at once.
    pub pages: Option<Pages>,
}

impl Graph {
    /// Width of an answer.
    pub fn result_width(&self) -> usize {
        self.values[self.result].width
    }
}

/// Writes a graph down.
#[derive(Debug, Default)]
pub struct Builder {
    ops: Vec<Op>,
    values: Vec<Size>,
    weights: Vec<Tensor>,
}

impl Builder {
    /// A tensor that operations may name.
    pub fn weight(&mut self, tensor: Tensor) -> Weight {
        self.weights.push(tensor);
        self.weights.len() - 1
    }

    /// Rows of a matrix.
    pub fn outputs(&self, weight: Weight) -> usize {
        self.weights[weight].rows()
    }

    /// A new value for each token.
    pub fn per_row(&mut self, width: usize) -> Value {
        self.value(Per::Row, width)
    }

    fn value(&mut self, per: Per, width: usize) -> Value {
        self.values.push(Size { per, width });
        self.values.len() - 1
    }

    /// A new value of the size of another.
    pub fn like(&mut self, value: Value) -> Value {
        let Size { per, width } = self.values[value];
        self.value(per, width)
    }

    /// Adds an operation as it is.
    pub fn push(&mut self, op: Op) {
        self.ops.push(op);
    }

    /// Width of a value.
    pub fn width(&self, value: Value) -> usize {
        self.values[value].width
    }

    /// See [`Op::Norm`].
    pub fn norm(&mut self, x: Value, norm: Norm, epsilon: f64) -> Value {
        let out = self.like(x);
        self.push(Op::Norm { x, residual: None, norm, epsilon, sum: None, out });
        out
    }

    /// See [`Op::Norm`]: the sum of both, and its norm.
    pub fn add_norm(&mut self, x: Value, residual: Value, norm: Norm, epsilon: f64) -> (Value, Value) {
        let (sum, out) = (self.like(x), self.like(x));
        self.push(Op::Norm { x, residual: Some(residual), norm, epsilon, sum: Some(sum), out });
        (sum, out)
    }

    /// See [`Op::Linear`].
    pub fn linear(&mut self, x: Value, parts: Vec<Part>, activation: Option<Activation>) -> Value {
        let width = parts.iter().map(|part| self.outputs(part.weight)).sum();
        let out = self.value(self.values[x].per, width);
        self.push(Op::Linear { x, parts, activation, out });
        out
    }

    /// See [`Op::Attend`].
    pub fn attend(&mut self, qkv: Value, heads: Heads) -> Value {
        let out = self.per_row(heads.query * heads.width);
        self.push(Op::Attend { qkv, heads, out });
        out
    }

    /// See [`Op::Gate`].
    pub fn gate(&mut self, x: Value, activation: Activation) -> Value {
        let out = self.per_row(self.width(x) / 2);
        self.push(Op::Gate { x, activation, out });
        out
    }

    /// See [`Op::Add`].
    pub fn add(&mut self, x: Value, y: Value) -> Value {
        let out = self.like(x);
        self.push(Op::Add { x, y, out });
        out
    }

    /// See [`Op::Take`].
    pub fn take(&mut self, x: Value) -> Value {
        let out = self.value(Per::Output, self.width(x));
        self.push(Op::Take { x, out });
        out
    }

    /// See [`Op::Softcap`].
    pub fn softcap(&mut self, x: Value, bound: f64) -> Value {
        let out = self.like(x);
        self.push(Op::Softcap { x, bound, out });
        out
    }

    /// See [`Op::Pool`].
    pub fn pool(&mut self, x: Value, pooling: Pooling) -> Value {
        let out = self.value(Per::Output, self.width(x));
        self.push(Op::Pool { x, pooling, out });
        out
    }

    /// See [`Op::Normalize`].
    pub fn normalize(&mut self, x: Value) -> Value {
        let out = self.like(x);
        self.push(Op::Normalize { x, out });
        out
    }

    /// The graph whose answers are in `result`.
    pub fn finish(self, result: Value, pages: Option<Pages>) -> Graph {
        assert_eq!(self.values[result].per, Per::Output, "answers are what is asked for");
        Graph { ops: self.ops, values: self.values, weights: self.weights, result, pages }
    }
}
