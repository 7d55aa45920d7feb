//! Chat templates: the messages of a talk to the text that a model was trained on.
//!
//! A template is Jinja as transformers runs it (`chat_template_utils.py`): blocks are trimmed, Python's methods of texts
//! and lists are there, and `raise_exception` refuses what a model cannot take. What must hold: a template is hostile
//! until proven otherwise; it reads what it is given and nothing else, and stops after a bounded number of steps.
//! Not here: a bound of memory, or of the time of a step. A template that doubles a text in a loop, multiplies a list or
//! prints a cycle takes as much as it says, for minijinja counts steps alone; a server renders those of others in a process
//! that it can end.

use minijinja::value::Value;
use minijinja::{Environment, Error, ErrorKind, context};
use serde::{Deserialize, Serialize};
use serde_json::Map;

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
    text: String,
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
            Err(Error::new(ErrorKind::InvalidOperation, "raised").with_source(Raised(message)))
        });
        guarded(|| environment.add_template_owned(NAME, template.to_owned()))
            .and_then(|added| added.map_err(|error| error.to_string()))
            .map_err(|reason| wrong(format!("cannot be read: {reason}")))?;
        Ok(Self { environment, text: template.to_owned(), bos: bos.to_owned(), eos: eos.to_owned() })
    }

    /// What [`Self::new`] was given.
    pub fn parts(&self) -> [&str; 3] {
        [&self.text, &self.bos, &self.eos]
    }

    /// What a template is always told.
    pub const OWN: [&str; 4] = ["messages", "add_generation_prompt", "bos_token", "eos_token"];

    /// The text of a talk, at whose end the model is to speak.
    pub fn render(&self, messages: &[Message]) -> Result<String, EngineError> {
        self.render_with(messages, &Map::new())
    }

    /// The same with variables of the template beside [`Self::OWN`], which those cannot change.
    pub fn render_with(
        &self,
        messages: &[Message],
        variables: &Map<String, serde_json::Value>,
    ) -> Result<String, EngineError> {
        let template = self.environment.get_template(NAME).expect("it was added");
        let variables = Value::from_serialize(variables);
        let all = context! {
            messages, add_generation_prompt => true, bos_token => self.bos, eos_token => self.eos, ..variables
        };
        let rendered = guarded(|| template.render(all)).and_then(|text| text.map_err(|error| reason(&error)));
        rendered.map_err(|reason| EngineError::Template { reason })
    }
}

/// What a template says for itself when it refuses a talk.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

/// Why a talk has no text: in the template's own words where it has some.
fn reason(error: &Error) -> String {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(one) = cause {
        if let Some(raised) = one.downcast_ref::<Raised>() {
            return format!("refuses this: {raised}");
        }
        cause = one.source();
    }
    error.to_string()
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
        assert_eq!(said(template, &[("x", "")]), "chat template refuses this: no x");
        let in_macro = "{% macro no(x) %}{{ raise_exception(x) }}{% endmacro %}{{ no('because') }}";
        assert_eq!(said(in_macro, &[]), "chat template refuses this: because");
        assert!(said("{% for", &[]).contains("chat template cannot be read"));
        // minijinja 2.24 takes the first letter of a text that has none.
        assert!(said("{{ messages[0].content[::-1] }}", &[("user", "")]).contains("chat template"));
        let used = "{{ [1, 2, 3]|batch(2)|list }} {{ 'a\\nb'|indent(2) }} {{ {'a': [1]}|tojson(indent=1) }} {{ '%05.1f'|format(2) }} {{ '{:>4}'.format(7) }}";
        assert_eq!(said(used, &[]), "[[1, 2], [3]] a\n  b {\n \"a\": [\n  1\n ]\n} 002.0    7");
        let template = "{{ enable_thinking }} {{ of.a[1] }} {{ bos_token }}{{ messages }}{{ add_generation_prompt }}";
        let variables = serde_json::json!({"enable_thinking": false, "of": {"a": [1, "x"]}, "bos_token": 7,
            "messages": 7, "add_generation_prompt": 7});
        let template = ChatTemplate::new(template, "<s>", "</s>").unwrap();
        let text = template.render_with(&[], variables.as_object().unwrap()).unwrap();
        assert_eq!(text, "False x <s>[]True");
        assert!(
            said("{% for a in range(9999) %}{% for b in range(9999) %}{{ a }}{% endfor %}{% endfor %}", &[])
                .contains("chat template")
        );
    }
}
