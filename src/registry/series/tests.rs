//! Tests of series: lines, resuming, and stores that fail.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::*;

const SOON: Duration = Duration::from_millis(20);
const NEVER: Duration = Duration::from_secs(3600);

/// A store, the folder of a step in it, and a local folder.
struct Place {
    _kept: tempfile::TempDir,
    store: Store,
    folder: SeriesFolder,
    local: PathBuf,
}

fn place() -> Place {
    let kept = tempfile::tempdir().unwrap();
    let store = Store::open(kept.path().join("store").to_str().unwrap()).unwrap();
    let folder = SeriesFolder::new(&store, "R", "tune").unwrap();
    let local = kept.path().join("local");
    std::fs::create_dir(&local).unwrap();
    Place { _kept: kept, store, folder, local }
}

impl Place {
    fn stored(&self, name: &str) -> Option<String> {
        let bytes = self.store.get(&format!("runs/R/tune/{name}")).unwrap()?;
        Some(String::from_utf8(bytes).unwrap())
    }

    fn local(&self) -> String {
        std::fs::read_to_string(self.local.join(LINES)).unwrap()
    }

    fn open(&self, earlier: Option<Earlier<'_>>, every: Duration) -> Series {
        Series::start(Some(self.folder.clone()), &self.local, earlier, (every, every)).unwrap()
    }
}

fn until(what: &str, done: impl Fn() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < Duration::from_secs(20), "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn write(series: &mut Series, step: u64, loss: f64) {
    series.write(step, &json!({"loss": loss}), &json!({"images_per_s": 10.0 / loss})).unwrap();
}

#[test]
fn lines_have_the_clock_in_the_store_and_not_in_the_local_file() {
    let place = place();
    let mut series = place.open(None, NEVER);
    let values = json!({"step": 9, "loss": 0.1, "time": 3, "lr": 1e-6, "evaluation": {"knn": 0.5}, "norm": f64::NAN});
    series.write(7, &values, &json!({"images_per_s": 3.5, "loss": 2})).unwrap();
    let text = String::from_utf8(series.text().to_vec()).unwrap();
    drop(series);
    let lasting = r#"{"step":7,"loss":0.1,"lr":1e-6,"evaluation":{"knn":0.5},"norm":null"#;
    assert_eq!(place.local(), format!("{lasting}}}\n"));
    let stored = place.stored(LINES).unwrap();
    assert_eq!(stored, text);
    let rest = stored.strip_prefix(lasting).expect("the same fields first");
    let clock: Value = serde_json::from_str(&rest.replacen(',', "{", 1)).unwrap();
    assert_eq!(clock["images_per_s"], 3.5);
    OffsetDateTime::parse(clock["time"].as_str().unwrap(), &Rfc3339).unwrap();
    assert_eq!(clock.as_object().unwrap().len(), 2, "{clock}");

    let folders = series_folders(&place.store, "R").unwrap();
    assert_eq!(folders, BTreeMap::from([("tune".to_owned(), place.folder.uri())]));
    assert!(series_folders(&place.store, "none").unwrap().is_empty());
}

#[test]
fn values_that_are_no_object_and_names_that_are_no_names_are_refused() {
    let place = place();
    let mut series = place.open(None, NEVER);
    for (values, clock) in [(json!([1]), json!({})), (json!({}), json!(1))] {
        assert_eq!(series.write(1, &values, &clock).unwrap_err().kind(), crate::ErrorKind::Internal);
    }
    for (run, step) in [("a/b", "c"), ("a", "b/c"), ("", "c"), ("a", ".."), ("a", "b c")] {
        let error = SeriesFolder::new(&place.store, run, step).unwrap_err();
        assert_eq!(error.kind(), crate::ErrorKind::Config, "{run} {step}");
    }
}

#[test]
fn the_store_has_the_lines_while_the_series_goes_on() {
    let place = place();
    let mut series = place.open(None, SOON);
    for step in 1..=3 {
        write(&mut series, step, 1.0);
        until("the line is there", || {
            place.stored(LINES).is_some_and(|text| text.lines().count() as u64 == step && text.ends_with('\n'))
        });
    }
    let events: Vec<String> = place.store.list("runs/R/tune").unwrap().into_iter().map(|o| o.key).collect();
    assert!(events.iter().any(|key| key.contains("events.out.tfevents.")), "{events:?}");
}

#[test]
fn after_the_first_write_the_next_waits_and_a_note_and_the_end_do_not() {
    let place = place();
    let mut series = place.open(None, NEVER);
    until("the events have begun", || !place.store.list("runs/R/tune").unwrap().is_empty());
    write(&mut series, 1, 1.0);
    series.note("non-finite.jsonl", b"{}\n".to_vec());
    until("the note is there", || place.stored("non-finite.jsonl").is_some());
    assert_eq!(place.stored(LINES), None);
    drop(series);
    assert!(place.stored(LINES).is_some());
}

#[test]
fn a_resumed_series_is_that_of_a_run_that_was_not_interrupted() {
    let (whole, broken) = (place(), place());
    let mut series = whole.open(None, NEVER);
    (1..=6).for_each(|step| write(&mut series, step, 1.0 / step as f64));
    drop(series);

    let mut series = broken.open(None, NEVER);
    (1..=3).for_each(|step| write(&mut series, step, 1.0 / step as f64));
    let mut earlier = series.text().to_vec();
    let until_then = earlier.clone();
    write(&mut series, 4, 99.0);
    earlier = [&earlier, &series.text()[earlier.len()..], br#"{"step": 5, "lo"#].concat();
    drop(series);
    let mut series = broken.open(Some(Earlier { text: &earlier, step: 3 }), NEVER);
    assert_eq!(series.text(), until_then, "lines keep their times");
    (4..=6).for_each(|step| write(&mut series, step, 1.0 / step as f64));
    drop(series);
    assert_eq!(broken.local(), whole.local());
    assert!(broken.stored(LINES).unwrap().as_bytes().starts_with(&until_then));
}

#[test]
fn a_store_that_fails_neither_ends_nor_delays_the_series_and_gets_all_of_it_later() {
    let place = place();
    // a file where the folder should be
    place.store.put("runs/R/tune", b"in the way".to_vec()).unwrap();
    let mut series = place.open(None, SOON);
    series.note("a", b"b".to_vec());
    for step in 1..=4 {
        write(&mut series, step, 0.5);
        std::thread::sleep(2 * SOON);
    }
    assert_eq!(place.local().lines().count(), 4);
    place.store.delete("runs/R/tune").unwrap();
    until("all is there", || {
        place.stored(LINES).is_some_and(|text| text.as_bytes() == series.text()) && place.stored("a").is_some()
    });

    place.store.delete_folder("runs/R/tune").unwrap();
    place.store.put("runs/R/tune", b"in the way".to_vec()).unwrap();
    write(&mut series, 5, 0.5);
    // the end is not held up either
    let started = Instant::now();
    drop(series);
    assert!(started.elapsed() < Duration::from_secs(10));
    assert_eq!(place.local().lines().count(), 5);
}

#[test]
fn without_a_store_there_is_the_local_file() {
    let place = place();
    let mut series = Series::open(None, &place.local, None).unwrap();
    write(&mut series, 1, 1.0);
    assert_eq!(place.local(), "{\"step\":1,\"loss\":1.0}\n");
}
