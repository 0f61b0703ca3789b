//! Every rule finds what its own failing file has, and nothing in its passing file. The files are `rules/RULE.toml`.
//!
//! A file has `fail` and `pass`, each the text of a configuration. `beside` are other files of the folder. With `host`, the
//! configurations are compared with [`Pretended`].

#![expect(clippy::unwrap_used, reason = "a test is to fail where this fails")]

use std::{collections::BTreeSet, fs, path::Path};

use lint::{
    Finding, Host, Rule, Source,
    host::{HostLink, HostRoute, Program},
};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    #[serde(default = "usual_file")]
    file: String,
    pass_file: Option<String>,
    fail: Option<String>,
    /// What no text can be.
    fail_bytes: Option<Vec<u8>>,
    /// The passing text, with so many spaces after it.
    fail_spaces: Option<usize>,
    pass: String,
    #[serde(default)]
    beside: Vec<Beside>,
    #[serde(default)]
    host: bool,
    #[serde(default)]
    drops: bool,
    fail_mode: Option<u32>,
    fail_owner: Option<u32>,
    fail_folder_mode: Option<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Beside {
    file: String,
    text: String,
}

fn usual_file() -> String {
    "10-lab.conflist".to_owned()
}

/// A host with `eth0` and `docker0`, and with every plugin except `absent`.
struct Pretended {
    links: Vec<HostLink>,
    routes: Vec<HostRoute>,
    drops: bool,
    folder_mode: u32,
}

impl Host for Pretended {
    fn links(&self) -> &[HostLink] {
        &self.links
    }

    fn default_link(&self) -> Option<&str> {
        Some("eth0")
    }

    fn routes(&self) -> &[HostRoute] {
        &self.routes
    }

    fn program(&self, kind: &str) -> Program {
        let versions: &[&str] =
            if kind == "old" { &["0.3.1"] } else { &["0.3.1", "0.4.0", "1.0.0", "1.1.0"] };
        Program {
            path: (kind != "absent").then(|| format!("/opt/cni/bin/{kind}")),
            is_not_executable: kind == "unexecutable",
            is_writable: kind == "writable",
            versions: versions.iter().map(ToString::to_string).collect(),
        }
    }

    fn folders(&self) -> &'static str {
        "/opt/cni/bin"
    }

    fn has_file(&self, path: &str) -> bool {
        ["/etc/resolv.conf", "/run/other.sock"].contains(&path)
    }

    fn drops_forwarded(&self) -> bool {
        self.drops
    }

    fn folder(&self) -> Option<(String, u32)> {
        Some(("/etc/cni/net.d".to_owned(), self.folder_mode))
    }
}

impl Case {
    fn read(path: &Path) -> Self {
        let text = fs::read_to_string(path).unwrap();
        toml::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    /// Checks the failing or the passing file with those beside it.
    fn findings(&self, bytes: Vec<u8>, is_failing: bool) -> Vec<Finding> {
        let only = |value: Option<u32>, usual: u32| value.filter(|_| is_failing).unwrap_or(usual);
        let file = self.pass_file.as_ref().filter(|_| !is_failing).unwrap_or(&self.file);
        let access = Some((only(self.fail_mode, 0o644), only(self.fail_owner, 0)));
        let mut sources = vec![Source { path: file.clone(), bytes, access, ..Source::default() }];
        sources.extend(self.beside.iter().map(|beside| Source {
            path: beside.file.clone(),
            bytes: beside.text.clone().into(),
            access: Some((0o644, 0)),
            ..Source::default()
        }));
        sources.sort_by(|a, b| a.path.cmp(&b.path));
        let link = |name: &str| HostLink { names: vec![name.to_owned()], mtu: 1500 };
        let route = |to: &str, link: &str| HostRoute {
            to: to.parse().unwrap(),
            link: link.to_owned(),
            is_connected: true,
        };
        let host = Pretended {
            links: vec![link("eth0"), link("docker0")],
            routes: vec![route("192.168.1.0/24", "eth0"), route("172.17.0.0/16", "docker0")],
            drops: self.drops,
            folder_mode: only(self.fail_folder_mode, 0o755),
        };
        lint::check(&sources, self.host.then_some(&host as &dyn Host))
    }

    fn failing(&self) -> Vec<u8> {
        match (&self.fail, &self.fail_bytes, self.fail_spaces) {
            (Some(text), ..) => text.clone().into(),
            (_, Some(bytes), _) => bytes.clone(),
            (.., Some(spaces)) => (self.pass.clone() + &" ".repeat(spaces)).into(),
            _ => panic!("a case without a failing file"),
        }
    }
}

fn cases() -> Vec<(Rule, Case)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/rules");
    let mut names = BTreeSet::new();
    let cases = fs::read_dir(folder).unwrap().map(|entry| {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let rule = Rule::by_name(&name).unwrap_or_else(|| panic!("no rule is called {name}"));
        names.insert(name);
        (rule, Case::read(&path))
    });
    let cases: Vec<_> = cases.collect();
    let missing: Vec<&str> =
        Rule::ALL.iter().map(|rule| rule.info().name).filter(|name| !names.contains(*name)).collect();
    assert!(missing.is_empty(), "rules without a file: {missing:?}");
    cases
}

#[test]
fn every_rule_fires_on_its_failing_file_alone() {
    let mut wrong = Vec::new();
    for (rule, case) in cases() {
        let found = case.findings(case.failing(), true);
        if found.is_empty() || found.iter().any(|finding| finding.rule != rule) {
            wrong.push(format!("{}: fail: {found:#?}", rule.info().name));
        }
        let found = case.findings(case.pass.clone().into(), false);
        if !found.is_empty() {
            wrong.push(format!("{}: pass: {found:#?}", rule.info().name));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A fix removes the finding, changes nothing else, and leaves no further finding.
#[test]
fn fixes_mend() {
    let mut mended = 0;
    for (rule, case) in cases() {
        let bytes = case.failing();
        let findings = case.findings(bytes.clone(), true);
        let has_fix = findings.iter().any(|finding| !finding.fix.is_empty());
        assert_eq!(has_fix, rule.info().is_fixable, "{}", rule.info().name);
        if has_fix {
            let (fixed, applied) = lint::fixed(&bytes, &findings);
            let text = String::from_utf8_lossy(&fixed).into_owned();
            let left = case.findings(fixed, true);
            assert!(left.is_empty(), "{}: {text}\n{left:#?}", rule.info().name);
            let changed: usize =
                findings.iter().flat_map(|it| &it.fix).map(|it| it.span.len() + it.with.len()).sum();
            assert!(text.len().abs_diff(bytes.len()) <= changed, "{text}");
            mended += applied;
        }
    }
    assert!(mended >= 12, "{mended}");
}

/// Findings in a file of a megabyte are at their places.
#[test]
fn places_in_a_large_file_are_exact() {
    let filler: String =
        (0..20_000).map(|index| format!("      \"key{index}\": \"{}\",\n", "x".repeat(40))).collect();
    let text = format!(
        "{{\n  \"cniVersion\": \"1.0.0\", \"name\": \"lab\",\n  \"plugins\": [\n    {{\"type\": \"other\", \"data\": {{\n{filler}      \
         \"last\": 0}}}},\n    {{\"type\": \"tuning\", \"mtu\": 20,}}\n  ]\n}}\n"
    );
    assert!(text.len() > 1_000_000, "{}", text.len());
    let source =
        Source { path: "10-lab.conflist".to_owned(), bytes: text.clone().into(), ..Source::default() };
    let found = lint::check(&[source], None);
    let marked: Vec<(&str, &str)> =
        found.iter().map(|finding| (finding.rule.info().name, &text[finding.span.clone()])).collect();
    assert_eq!(marked, [("out-of-range", "20"), ("json-trailing-comma", ",")]);
    let broken = text.replace("\"key19999\":", "\"key19999\"");
    let source =
        Source { path: "10-lab.conflist".to_owned(), bytes: broken.clone().into(), ..Source::default() };
    let found = lint::check(&[source], None);
    assert_eq!(found.len(), 1, "{found:#?}");
    let at = broken.find("\"key19999\"").unwrap();
    assert!(found[0].span.start.abs_diff(at) < 20, "{:?} {at}", found[0].span);
}
