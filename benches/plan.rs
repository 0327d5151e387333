//! What a host of a large mesh makes of its configuration: `cargo bench --bench plan`.

mod fixtures;

use criterion::{Criterion, criterion_group, criterion_main};
use meshd::plan::{ActualState, desired, diff};

use fixtures::mesh;

fn plan(criterion: &mut Criterion) {
    let (config, facts) = mesh(1_000);
    let mut group = criterion.benchmark_group("1,000 peers");
    group.bench_function("plan", |bench| bench.iter(|| desired(&config, &facts)));
    let (state, _) = desired(&config, &facts);
    let nothing = ActualState::default();
    group.bench_function("difference from nothing", |bench| bench.iter(|| diff(&state, &nothing)));
    let in_place = ActualState { routes: state.routes.clone(), rules: state.rules.clone(), ..ActualState::default() };
    group.bench_function("difference from the same routes", |bench| bench.iter(|| diff(&state, &in_place)));
    group.finish();
}

criterion_group!(benches, plan);
criterion_main!(benches);
