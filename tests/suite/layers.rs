//! docs/architecture.md: "a layer calls only downward; no file and no folder of `src/` refers to itself by way of others".
//!
//! Read are the paths that begin with `crate`, `self`, `super` or `zmreplica`, in all but tests. What a folder's own file defines is for the files in the
//! folder, so these may refer to it. `fuzzing` reaches into all parts, and is in no release.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use walkdir::WalkDir;

/// A module: the names on the way to it. Folders are modules, too.
type Module = Vec<String>;
type References = BTreeMap<Module, BTreeSet<Module>>;

fn sources() -> BTreeMap<Module, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let files = WalkDir::new(&root).into_iter().map(|entry| entry.unwrap().into_path());
    let module = |path: PathBuf| {
        let name = path.strip_prefix(&root).unwrap().with_extension("");
        let mut module: Module = name.iter().map(|part| part.to_str().unwrap().to_owned()).collect();
        let is_left_out = module.iter().any(|part| part.contains("tests") || part == "fuzzing");
        if module.last().is_some_and(|last| last == "mod" || last == "lib") {
            module.pop();
        }
        (path.extension().is_some_and(|extension| extension == "rs") && !is_left_out)
            .then(|| (module, fs::read_to_string(path).unwrap()))
    };
    files.filter_map(module).collect()
}

/// Returns the code of a file without comments and tests.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    let text = text.split("#[cfg(test)]\n#[path").next().unwrap_or_default();
    text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join(" ")
}

/// Takes the paths apart that begin a text: `a::{b, c::d}` is `a::b` and `a::c::d`. Returns what is behind them.
fn paths<'a>(text: &'a str, before: &[String], found: &mut Vec<Module>) -> &'a str {
    let end = text.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':')).unwrap_or(text.len());
    let (path, mut rest) = text.split_at(end);
    let whole: Module =
        before.iter().cloned().chain(path.split("::").filter(|part| !part.is_empty()).map(str::to_owned)).collect();
    if !path.ends_with("::") || !rest.starts_with('{') {
        found.push(whole);
        return rest;
    }
    while !rest.starts_with('}') && !rest.is_empty() {
        rest = paths(rest[1..].trim_start(), &whole, found);
        rest = &rest[rest.find([',', '}']).unwrap_or(rest.len())..];
    }
    rest.get(1..).unwrap_or_default()
}

fn references(sources: &BTreeMap<Module, String>) -> References {
    let of = |(module, text): (&Module, &String)| {
        let code = code(text);
        let mut found = Vec::new();
        for root in ["crate::", "self::", "super::", "zmreplica::"] {
            for (at, _) in code
                .match_indices(root)
                .filter(|(at, _)| !code[..*at].ends_with(|c: char| c.is_alphanumeric() || c == ':' || c == '_'))
            {
                paths(&code[at..], &[], &mut found);
            }
        }
        let resolved = found.into_iter().filter_map(|path| {
            let ups = path.iter().take_while(|part| *part == "super").count();
            let base = match path.first()?.as_str() {
                "crate" | "zmreplica" => 0,
                _ => module.len().checked_sub(ups)?,
            };
            let below = path.iter().filter(|part| !["crate", "zmreplica", "self", "super"].contains(&part.as_str()));
            let whole: Module = module[..base].iter().chain(below).cloned().collect();
            let named =
                (0..=whole.len()).rev().map(|length| whole[..length].to_vec()).find(|part| sources.contains_key(part));
            named.filter(|named| !module.starts_with(named))
        });
        (module.clone(), resolved.collect())
    };
    sources.iter().map(of).collect()
}

/// Leaves what lies on a circle, or between two.
fn circles(mut references: References) -> References {
    loop {
        let before = references.len();
        let all: BTreeSet<Module> = references.keys().cloned().collect();
        references.retain(|_, to| !to.is_disjoint(&all));
        let named: BTreeSet<Module> = references.values().flatten().cloned().collect();
        references.retain(|module, _| named.contains(module));
        if references.len() == before {
            return references;
        }
    }
}

#[test]
fn no_file_and_no_folder_refers_to_itself_by_way_of_others() {
    let sources = sources();
    let references = references(&sources);
    let count: usize = references.values().map(BTreeSet::len).sum();
    assert!(count > 1000, "{count} references in {} files", sources.len());
    let folder = |module: &Module| module.iter().take(1).cloned().collect::<Module>();
    let mut folders = References::new();
    for (module, to) in &references {
        let to = to.iter().map(folder).filter(|to| !to.is_empty() && *to != folder(module));
        folders.entry(folder(module)).or_default().extend(to);
    }
    assert_eq!(circles(references), References::new());
    assert_eq!(circles(folders), References::new());
}

#[test]
fn a_circle_is_found() {
    let source =
        |(name, text): (&str, &str)| (name.split("::").map(str::to_owned).collect::<Module>(), text.to_owned());
    let made = [
        ("a", "use crate::b::{self, Of};\nuse crate::{c, d::E};"),
        ("b", "pub use self::inner::Of; // crate::a"),
        ("b::inner", "use super::Whole;\nfn f() { crate::c::go() }\n#[cfg(test)]\nmod tests { use crate::a; }"),
        ("c", "use super::d::{E, F as G};"),
        ("d", "struct E;"),
    ];
    assert_eq!(circles(references(&made.map(source).into())), References::new());
    let mut turned = made;
    turned[4].1 = "use crate::{c::X, b::inner::Y};";
    let found = circles(references(&turned.map(source).into()));
    let names: Vec<String> = found.keys().map(|module| module.join("::")).collect();
    assert_eq!(names, ["b::inner", "c", "d"]);
}
