//! A checkpoint seen as dense is the checkpoint that its reference dequantizes to.

use safequant::DenseView;
use safequant::container::Dtype;
use safequant::kernels::{Backend, Float};
use safequant::schemes::{Decoder, Model, OutputDtype, RowsOut};

use super::fixture;

#[test]
fn the_dense_view_has_every_tensor_with_the_values_of_the_weights() {
    let (mut n_weights, mut n_plain) = (0, 0);
    for fixture in fixture::all() {
        let checkpoint = fixture.open();
        let model = Model::bind(&checkpoint).unwrap();
        let backend = Backend::detect();
        for dtype in [OutputDtype::Auto, OutputDtype::Float(Float::F32)] {
            let view = DenseView::new(&checkpoint, &model, dtype, backend);
            assert_eq!(
                view.names().len(),
                model.quantized.len() + model.effective.len() + model.plain.len(),
                "{}",
                fixture.name
            );
            for tensor in &model.quantized {
                let dense = view.tensor(&tensor.weight).unwrap().unwrap();
                assert_eq!(dense.shape, tensor.shape);
                let rows = dense.n_rows();
                let (start, end) = (rows / 3, rows.min(rows / 3 + 3));
                let len = usize::try_from((end - start) * dense.row_bytes()).unwrap();
                let (mut found, mut expected) = (vec![0; len], vec![0; len]);
                dense.rows(start..end, &mut found).unwrap();
                let decoder = Decoder::new(tensor, &checkpoint, backend).unwrap();
                let out = RowsOut::Bytes(dtype.of(tensor), &mut expected);
                decoder.rows(start..end, out).unwrap();
                assert!(found == expected, "{} {}", fixture.name, tensor.module);
                n_weights += 1;
            }
            for name in &model.plain {
                let dense = view.tensor(name).unwrap().unwrap();
                assert_ne!(dense.dtype, Dtype::Bool);
                let len = usize::try_from(dense.n_rows() * dense.row_bytes()).unwrap();
                let mut found = vec![0; len];
                dense.rows(0..dense.n_rows(), &mut found).unwrap();
                let stored = checkpoint.tensor(name).unwrap();
                assert!(found == stored.read_all(1 << 30).unwrap(), "{name}");
                n_plain += 1;
            }
            assert!(view.tensor("no such tensor").unwrap().is_none());
        }
    }
    assert!(n_weights > 500, "{n_weights} weights");
    assert!(n_plain > 200, "{n_plain} plain tensors");
}
