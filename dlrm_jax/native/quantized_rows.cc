// Rows of numbers as 8- or 4-bit integers with scale and bias, the bytes that
// `dlrm_jax.artifact.row_quantization` describes and gives, too.
//
// A row is a lane of vectors, so that each row's sums run from left to right, as they do there.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "threads.h"
#include "vectors.h"

namespace {

constexpr float kBins = 200, kLeastBins = 168;
constexpr int64_t kRowsPerTask = 8192;

inline Lanes Select(IntLanes mask, Lanes a, Lanes b) {
  return (Lanes)(((IntLanes)a & mask) | ((IntLanes)b & ~mask));
}
inline Lanes Min(Lanes a, Lanes b) { return Select(b < a, b, a); }
inline Lanes Max(Lanes a, Lanes b) { return Select(b > a, b, a); }
inline Lanes Of(float x) { return Lanes{} + x; }

inline bool Any(IntLanes mask) {
  int32_t any = 0;
  for (int i = 0; i < kLanes; ++i) any |= mask[i];
  return any != 0;
}

inline Lanes Sqrt(Lanes x) {
  for (int i = 0; i < kLanes; ++i) x[i] = std::sqrt(x[i]);
  return x;
}

// What turns numbers into integers up to `most`, and back.
struct Steps {
  Lanes bias, scale, inverse;
  float most;

  Steps(Lanes low, Lanes high, float most) : bias(RoundToHalf(low)), most(most) {
    const Lanes span = high - bias;
    scale = RoundToHalf(Select(span == 0, Of(1), span / most));
    inverse = 1 / Select(scale == 0, Of(1), scale);
  }

  Lanes Integers(Lanes x) const {
    const Lanes inside = Min(Max((x - bias) * inverse, Lanes{}), Of(most));
    return (inside + 0x1.8p23f) - 0x1.8p23f;  // to the nearest, to even of two
  }
};

// The distance of rows from what 4 bits make of them.
inline Lanes Loss(const Lanes* columns, int64_t d, Lanes low, Lanes high) {
  const Steps steps(low, high, 15);
  Lanes total{};
  for (int64_t j = 0; j < d; ++j) {
    const Lanes error = columns[j] - (steps.Integers(columns[j]) * steps.scale + steps.bias);
    total += error * error;
  }
  return Sqrt(total);
}

// `clipped_range` of row_quantization.
inline void ClipRange(const Lanes* columns, int64_t d, Lanes& best_low, Lanes& best_high) {
  Lanes low = best_low, high = best_high;
  const Lanes step = (high - low) / kBins, least = kLeastBins * step;
  Lanes loss = Loss(columns, d, low, high), best = loss;
  IntLanes searching = low + least < high;
  while (Any(searching)) {
    const Lanes raised = low + step, lowered = high - step;
    const Lanes loss_raised = Loss(columns, d, raised, high);
    const Lanes loss_lowered = Loss(columns, d, low, lowered);
    const IntLanes better =
        searching & (loss < loss_raised) & (loss < loss_lowered) & (loss < best);
    best = Select(better, loss, best);
    best_low = Select(better, low, best_low);
    best_high = Select(better, high, best_high);
    const IntLanes raise = loss_raised < loss_lowered;
    searching &= (raise & (raised != low)) | (~raise & (lowered != high));
    low = Select(searching & raise, raised, low);
    high = Select(searching & ~raise, lowered, high);
    loss = Select(raise, loss_raised, loss_lowered);
    searching &= low + least < high;
  }
}

// Up to kLanes rows; `columns` has room for d vectors, `integers` for d times kLanes bytes.
void QuantizeLanes(const float* rows, int64_t count, int64_t d, int bits, Lanes* columns,
                   uint8_t* to, int64_t row_bytes) {
  for (int64_t j = 0; j < d; ++j) {
    for (int i = 0; i < kLanes; ++i) columns[j][i] = rows[std::min<int64_t>(i, count - 1) * d + j];
  }
  Lanes low = columns[0], high = columns[0];
  for (int64_t j = 1; j < d; ++j) low = Min(low, columns[j]), high = Max(high, columns[j]);
  low += 0;  // -0 becomes 0
  if (bits == 4) ClipRange(columns, d, low, high);
  const Steps steps(low, high, bits == 4 ? 15 : 255);
  for (int64_t j = 0; j < d; ++j) columns[j] = steps.Integers(columns[j]);
  for (int64_t i = 0; i < count; ++i, to += row_bytes) {
    const uint16_t header[] = {HalfBits(steps.scale[i] == 0 ? 1.f : steps.scale[i]),
                               HalfBits(steps.bias[i])};
    std::memcpy(to, header, 4);
    uint8_t* const integers = to + 4;
    if (bits == 8) {
      for (int64_t j = 0; j < d; ++j) integers[j] = static_cast<uint8_t>(columns[j][i]);
    } else {
      for (int64_t j = 0; j < d; j += 2) {
        const int lower = static_cast<int>(columns[j][i]);
        const int upper = j + 1 < d ? static_cast<int>(columns[j + 1][i]) : 0;
        integers[j / 2] = static_cast<uint8_t>(lower | upper << 4);
      }
    }
  }
}

}  // namespace

// Stored rows [n, row_bytes] of finite rows [n, d] that are within float16's range.
extern "C" void DlrmJaxQuantizeRows(const float* rows, int64_t n, int64_t d, int32_t bits,
                                    uint8_t* to, int64_t row_bytes, int64_t threads) {
  OnThreads(threads, (n + kRowsPerTask - 1) / kRowsPerTask, [&](int64_t task) {
    std::vector<Lanes> columns(d);
    const int64_t end = std::min(n, (task + 1) * kRowsPerTask);
    for (int64_t i = task * kRowsPerTask; i < end; i += kLanes) {
      QuantizeLanes(rows + i * d, std::min<int64_t>(kLanes, end - i), d, bits, columns.data(),
                    to + i * row_bytes, row_bytes);
    }
  });
}
