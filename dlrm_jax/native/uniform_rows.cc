// Uniform initial values of the rows of one device, the bits of `embedding.initial_values`.
//
// A number depends on the seed, the table's name, the row and the column alone, by the formulas of
// jax.random: threefry2x32 with a counter per number (jax_threefry_partitionable). So each device
// makes its own rows where they belong.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "parallel.h"
#include "threefry.h"
#include "xla/ffi/api/ffi.h"

namespace {

// x · y + z as XLA computes it: rounded once where the processor can.
inline float MultiplyAdd(float x, float y, float z) {
#if defined(__FMA__) || defined(__aarch64__)
  return std::fma(x, y, z);
#else
  return x * y + z;
#endif
}

// Numbers `first`, `first` + 1, ... of jax.random.uniform(key, ..., -bound, bound).
inline void Draw(Key key, uint32_t first, int64_t count, float bound, float* to) {
  auto draw = [&](int64_t i) {
    Words x, y;
    Threefry(key, first + static_cast<uint32_t>(i), x, y);
    // Random bits of the mantissa make a number from 1 to 2.
    Lanes values = (Lanes)((x ^ y) >> 9 | 0x3f800000) - 1.0f;
    for (int lane = 0; lane < kLanes; ++lane)
      values[lane] = MultiplyAdd(values[lane], 2 * bound, -bound);
    return values;
  };
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const Lanes values = draw(i);
    std::memcpy(to + i, &values, sizeof values);
  }
  if (i == count) return;
  const Lanes values = draw(i);
  std::memcpy(to + i, &values, sizeof(float) * (count - i));
}

// A piece of a table: rows of this device from `first` on. Its row i is the table's row
// i · modulus + residue, from column `column` on.
struct Piece {
  uint32_t name, first, rows, modulus, residue, column;
  float bound;
};
static_assert(sizeof(Piece) == 28);

// Draws the rows from `begin` to `end` of a piece, both counted from its own first one.
void DrawRows(Key key, const Piece& piece, int64_t begin, int64_t end, int64_t width, int64_t dim,
              int64_t chunk_rows, float* to) {
  const bool whole = piece.modulus == 1 && width == dim;
  while (begin < end) {
    const int64_t row = begin * piece.modulus + piece.residue, chunk = row / chunk_rows;
    // Of the rows of this chunk, which have a key of their own.
    const int64_t left = ((chunk + 1) * chunk_rows - row + piece.modulus - 1) / piece.modulus;
    const int64_t count = std::min(end - begin, left);
    const Key own = FoldIn(key, chunk);
    const int64_t position = (row - chunk * chunk_rows) * dim + piece.column;
    if (whole) {
      Draw(own, position, count * width, piece.bound, to);
    } else {
      for (int64_t i = 0; i < count; ++i)
        Draw(own, position + i * piece.modulus * dim, width, piece.bound, to + i * width);
    }
    begin += count;
    to += count * width;
  }
}

ffi::Error UniformRows(ffi::ThreadPool pool, ffi::Buffer<ffi::U32> seed,
                       ffi::Buffer<ffi::U32> pieces_arg, ffi::Result<ffi::Buffer<ffi::F32>> result,
                       int64_t dim, int64_t chunk) {
  const int64_t rows = result->dimensions()[0], width = result->dimensions()[1];
  std::vector<Piece> pieces(pieces_arg.dimensions()[0]);
  std::memcpy(pieces.data(), pieces_arg.typed_data(), pieces_arg.size_bytes());
  const Key key{seed.typed_data()[0], seed.typed_data()[1]};
  // Some pages each, which the thread that fills them in gets from the system.
  const int64_t of_task = std::max<int64_t>(1, (1 << 18) / width);
  Parallel(pool, (rows + of_task - 1) / of_task, [&](int64_t task) {
    const int64_t begin = task * of_task, end = std::min(rows, begin + of_task);
    float* const to = result->typed_data();
    int64_t filled = begin;  // pieces lie one after the other, and padding at the end
    for (const Piece& piece : pieces) {
      const int64_t from = std::max<int64_t>(begin, piece.first);
      const int64_t until = std::min<int64_t>(end, int64_t{piece.first} + piece.rows);
      if (from >= until) continue;
      DrawRows(FoldIn(key, piece.name), piece, from - piece.first, until - piece.first, width, dim,
               chunk, to + from * width);
      filled = until;
    }
    std::fill(to + filled * width, to + end * width, 0.0f);
  });
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(DlrmJaxUniformRows, UniformRows,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::U32>>()
                                  .Arg<ffi::Buffer<ffi::U32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<int64_t>("dim")
                                  .Attr<int64_t>("chunk"));
