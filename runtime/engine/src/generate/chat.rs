//! Chat templates: the messages of a talk to the text that a model was trained on.
//!
//! A template is Jinja as transformers runs it (`chat_template_utils.py`): blocks are trimmed, Python's methods of texts
//! and lists are there, and `raise_exception` refuses what a model cannot take. What must hold: a template is hostile
//! until proven otherwise; it reads what it is given and nothing else, and stops after a bounded number of steps.
//! Not here: a bound of memory. A template that doubles a text in a loop, or multiplies a list, takes as much as it says, for
//! minijinja counts steps and no bytes; its server's limit of memory is what ends it.

use minijinja::{Environment, Error, ErrorKind, context};
use serde::{Deserialize, Serialize};

use crate::EngineError;
use crate::guarded::guarded;

/// Steps that a template may take: far above any real one.
const FUEL: u64 = 2_000_000;
/// The longest template that is read.
const TEMPLATE_BYTES_MAX: usize = 1 << 20;

/// One message of a talk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks, such as `user`.
    pub role: String,
    /// What is said.
    pub content: String,
}

/// A model's way of writing talks down.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos: String,
    eos: String,
}

const NAME: &str = "chat_template";

impl ChatTemplate {
    /// Reads a template; `bos` and `eos` are the texts of the tokens that begin and end.
    pub fn new(template: &str, bos: &str, eos: &str) -> Result<Self, EngineError> {
        let wrong = |reason: String| EngineError::Template { reason };
        if template.len() > TEMPLATE_BYTES_MAX {
            return Err(wrong(format!("has {} bytes; at most {TEMPLATE_BYTES_MAX} are read", template.len())));
        }
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<String, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        guarded(|| environment.add_template_owned(NAME, template.to_owned()))
            .and_then(|added| added.map_err(|error| error.to_string()))
            .map_err(|reason| wrong(format!("cannot be read: {reason}")))?;
        Ok(Self { environment, bos: bos.to_owned(), eos: eos.to_owned() })
    }

    /// The text of a talk, at whose end the model is to speak.
    pub fn render(&self, messages: &[Message]) -> Result<String, EngineError> {
        let template = self.environment.get_template(NAME).expect("it was added");
        let all = context! { messages, add_generation_prompt => true, bos_token => self.bos, eos_token => self.eos };
        let rendered = guarded(|| template.render(all)).and_then(|text| text.map_err(|error| error.to_string()));
        rendered.map_err(|reason| EngineError::Template { reason })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(template: &str, messages: &[(&str, &str)]) -> String {
        let messages: Vec<Message> = messages
            .iter()
            .map(|(role, content)| Message { role: (*role).to_owned(), content: (*content).to_owned() })
            .collect();
        match ChatTemplate::new(template, "<s>", "</s>").and_then(|template| template.render(&messages)) {
            Ok(text) => text,
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn templates_do_what_transformers_does() {
        let template = "{{ bos_token }}{% for m in messages %}\n    {% if m['role'] == 'x' %}{{ raise_exception('no x') }}{% endif %}\n<|{{ m.role }}|>{{ m['content'].strip() }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}";
        assert_eq!(said(template, &[("user", " hi ")]), "<s><|user|>hi</s><|assistant|>");
        assert!(said(template, &[("x", "")]).contains("no x"));
        assert!(said("{% for", &[]).contains("chat template cannot be read"));
        // minijinja 2.24 takes the first letter of a text that has none.
        assert!(said("{{ messages[0].content[::-1] }}", &[("user", "")]).contains("chat template"));
        assert!(
            said("{% for a in range(9999) %}{% for b in range(9999) %}{{ a }}{% endfor %}{% endfor %}", &[])
                .contains("chat template")
        );
    }
}
