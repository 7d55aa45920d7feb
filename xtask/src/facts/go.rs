//! Reads the API structs of Go packages: JSON name, pointer or not, left out when empty or not, inlined or not,
//! protobuf number. API files keep to one field a line with its tags, so a line reader is enough.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// A declared type.
#[derive(Clone, Debug)]
pub(crate) enum GoType {
    Struct(Vec<GoField>),
    /// `type X T` for anything that is not a struct.
    Other(String),
}

/// One line of a struct.
#[derive(Clone, Debug)]
pub(crate) struct GoField {
    /// The type, names of other packages written `package:Name` with OpenAPI's package names.
    pub(crate) kind: String,
    /// The JSON name; none where the struct's fields are inlined.
    pub(crate) json: Option<String>,
    pub(crate) omit_empty: bool,
    pub(crate) omit_zero: bool,
    pub(crate) number: Option<u32>,
}

impl GoField {
    /// Whether absence can be told from the zero value.
    pub(crate) fn pointer(&self) -> bool {
        self.kind.starts_with('*')
    }
}

type Package = BTreeMap<String, GoType>;

/// The Go packages, read when first asked for.
pub(crate) struct Packages {
    roots: Vec<(&'static str, PathBuf)>,
    read: HashMap<String, Package>,
}

impl Packages {
    /// Packages below these module roots.
    pub(crate) fn new(roots: Vec<(&'static str, PathBuf)>) -> Packages {
        Packages { roots, read: HashMap::new() }
    }

    /// The type called `name` of an OpenAPI package such as `io.k8s.api.core.v1`.
    pub(crate) fn declared(&mut self, package: &str, name: &str) -> Result<&GoType> {
        if !self.read.contains_key(package) {
            let found = read_package(&package_dir(&self.roots, package)?, package)?;
            self.read.insert(package.to_owned(), found);
        }
        self.read[package].get(name).with_context(|| format!("no Go type {package}:{name}"))
    }
}

/// The directory of `io.k8s.api.core.v1` below the module roots.
pub(crate) fn package_dir(roots: &[(&'static str, PathBuf)], package: &str) -> Result<PathBuf> {
    let inner = package.strip_prefix("io.k8s.").with_context(|| format!("package {package} is not of Kubernetes"))?;
    let (module, path) = inner.split_once('.').with_context(|| format!("package {package} has no path"))?;
    let (_, root) =
        roots.iter().find(|(name, _)| *name == module).with_context(|| format!("no module for {package}"))?;
    Ok(root.join(path.replace('.', "/")))
}

fn read_package(dir: &Path, package: &str) -> Result<Package> {
    let mut types = Package::new();
    let entries = std::fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.sort();
    for path in paths {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let generated = name.starts_with("generated.") || name.starts_with("zz_") || name.ends_with("_test.go");
        if name.ends_with(".go") && !generated {
            let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
            read_file(&text, package, &mut types).with_context(|| format!("in {}", path.display()))?;
        }
    }
    Ok(types)
}

fn read_file(text: &str, package: &str, types: &mut Package) -> Result<()> {
    let mut imports = HashMap::new();
    let mut importing = false;
    let mut open: Option<(String, Vec<GoField>)> = None;
    for line in text.lines() {
        let words = line.trim();
        if importing {
            importing = words != ")";
            imports.extend(import(words));
        } else if let Some((name, fields)) = &mut open {
            if line == "}" {
                let (name, fields) = open.take().expect("a struct is open");
                types.insert(name, GoType::Struct(fields));
            } else if !words.is_empty() && !words.starts_with("//") {
                // Structs without tags are helpers that never reach the wire.
                if let Some(field) = field(words, package, &imports).with_context(|| format!("{name}: {words}"))? {
                    fields.push(field);
                }
            }
        } else if words == "import (" {
            importing = true;
        } else if let Some(single) = line.strip_prefix("import ") {
            imports.extend(import(single));
        } else if let Some(declared) = line.strip_prefix("type ") {
            match declared.split_once(' ') {
                Some((name, "struct {")) => open = Some((name.to_owned(), Vec::new())),
                Some((name, "struct{}")) => {
                    types.insert(name.to_owned(), GoType::Struct(Vec::new()));
                }
                Some((name, kind)) if !kind.starts_with(['=', 'i', 'f']) || kind.starts_with("int") => {
                    let kind = kind.split(" //").next().unwrap_or(kind).trim();
                    types.insert(name.to_owned(), GoType::Other(qualify(kind, package, &imports)));
                }
                _ => {}
            }
        }
    }
    Ok(())
}

/// The name and the OpenAPI package of one import line.
fn import(line: &str) -> Option<(String, String)> {
    let (alias, path) = line.split_once('"')?;
    let path = path.trim_end_matches('"');
    let inner = path.strip_prefix("k8s.io/")?;
    let name = if alias.trim().is_empty() { path.rsplit('/').next()? } else { alias.trim() };
    Some((name.to_owned(), format!("io.k8s.{}", inner.replace('/', "."))))
}

fn field(line: &str, package: &str, imports: &HashMap<String, String>) -> Result<Option<GoField>> {
    let Some((left, tags)) = line.split_once('`') else { return Ok(None) };
    let mut words = left.split_whitespace();
    let kind = match (words.next(), words.next(), words.next()) {
        (Some(embedded), None, None) => embedded,
        (Some(_), Some(kind), None) => kind,
        _ => bail!("not a field"),
    };
    let Some(json) = tag(tags, "json") else { return Ok(None) };
    let mut json = json.split(',');
    let name = json.next().filter(|name| !name.is_empty());
    if name == Some("-") {
        return Ok(None);
    }
    let options: Vec<&str> = json.collect();
    let number = match tag(tags, "protobuf") {
        None | Some("-") => None,
        Some(told) => Some(told.split(',').nth(1).context("no protobuf number")?.parse()?),
    };
    Ok(Some(GoField {
        kind: qualify(kind, package, imports),
        json: name.map(str::to_owned),
        omit_empty: options.contains(&"omitempty"),
        omit_zero: options.contains(&"omitzero"),
        number,
    }))
}

fn tag<'a>(tags: &'a str, name: &str) -> Option<&'a str> {
    let start = tags.find(&format!("{name}:\""))? + name.len() + 2;
    tags[start..].split('"').next()
}

/// Writes every type name with its package, keeping `*`, `[]` and `map[…]`.
fn qualify(kind: &str, package: &str, imports: &HashMap<String, String>) -> String {
    for prefix in ["*", "[]"] {
        if let Some(rest) = kind.strip_prefix(prefix) {
            return format!("{prefix}{}", qualify(rest, package, imports));
        }
    }
    if let Some((_, value)) = kind.strip_prefix("map[").and_then(|rest| rest.split_once(']')) {
        return format!("map[string]{}", qualify(value, package, imports));
    }
    match kind.split_once('.') {
        Some((alias, name)) => match imports.get(alias) {
            Some(of) => format!("{of}:{name}"),
            None => kind.to_owned(),
        },
        None if matches!(
            kind,
            "interface{}"
                | "string"
                | "bool"
                | "byte"
                | "int"
                | "int32"
                | "int64"
                | "uint32"
                | "uint64"
                | "float64"
                | "rune"
        ) =>
        {
            kind.to_owned()
        }
        None => format!("{package}:{kind}"),
    }
}

#[cfg(test)]
mod tests {
    use super::{GoType, Package, read_file};

    #[test]
    fn structs_are_read_with_their_tags() {
        let text = r#"package v1
import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)
type Extra []string
type Thing struct {
	metav1.TypeMeta `json:",inline"`
	// a comment
	Source `json:",inline" protobuf:"bytes,2,opt,name=source"`
	Count *int32 `json:"count,omitempty" protobuf:"varint,3,opt,name=count"`
	Limits map[Name]resource.Quantity `json:"limits" protobuf:"bytes,4,rep,name=limits"`
	Time metav1.Time `json:"time,omitempty,omitzero" protobuf:"bytes,5,opt,name=time"`
	hidden string
	Secret string `json:"-"`
}
"#;
        let mut types = Package::new();
        read_file(text, "io.k8s.api.x.v1", &mut types).unwrap();
        let GoType::Struct(fields) = &types["Thing"] else { panic!("not a struct") };
        let told: Vec<String> = fields
            .iter()
            .map(|field| {
                let flags = (field.pointer(), field.omit_empty, field.omit_zero);
                format!("{:?} {} {:?} {flags:?}", field.json, field.kind, field.number)
            })
            .collect();
        assert_eq!(
            told,
            [
                "None io.k8s.apimachinery.pkg.apis.meta.v1:TypeMeta None (false, false, false)",
                "None io.k8s.api.x.v1:Source Some(2) (false, false, false)",
                "Some(\"count\") *int32 Some(3) (true, true, false)",
                "Some(\"limits\") map[string]io.k8s.apimachinery.pkg.api.resource:Quantity Some(4) (false, false, false)",
                "Some(\"time\") io.k8s.apimachinery.pkg.apis.meta.v1:Time Some(5) (false, true, true)",
            ]
        );
        assert!(matches!(&types["Extra"], GoType::Other(kind) if kind == "[]string"));
    }
}
