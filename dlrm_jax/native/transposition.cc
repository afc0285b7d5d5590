// The transpose of a matrix as a custom call: XLA's loop reads it column by column.

#include "packing.h"
#include "parallel.h"
#include "xla/ffi/api/ffi.h"

namespace {

using namespace packing;
using Array = ffi::Buffer<ffi::F32>;

// Tiles of 16 rows and columns, a task for each 16 columns.
ffi::Error Transposed(ffi::ThreadPool pool, Array x, ffi::Result<Array> result) {
  const int64_t rows = x.dimensions()[0], columns = x.dimensions()[1];
  const float* const from = x.typed_data();
  float* const to = result->typed_data();
  Parallel(pool, (columns + kTile - 1) / kTile, [&](int64_t task) {
    const int64_t column = task * kTile, width = std::min(kTile, columns - column);
    for (int64_t row = 0; row < rows; row += kTile) {
      const int64_t height = std::min(kTile, rows - row);
      Floats tile[kTile] = {};
      for (int64_t i = 0; i < height; ++i)
        tile[i] = LoadFloats(from + (row + i) * columns + column, width);
      Transpose(tile);
      for (int64_t j = 0; j < width; ++j) Store(to + (column + j) * rows + row, tile[j], height);
    }
  });
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(DlrmJaxTransposed, Transposed,
                              ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Array>().Ret<Array>());
