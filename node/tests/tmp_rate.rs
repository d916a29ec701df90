//! temporary
#[test]
fn rate() {
    for t in [1, 2] {
        for _ in 0..3 {
            eprintln!("{t} threads: {:?}", sinew_node::exec::bench::spawn_rate(3000, t).unwrap());
        }
    }
}
