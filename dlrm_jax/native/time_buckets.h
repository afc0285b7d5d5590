// Buckets of time of HSTU's bias, as attention/attention_bias.py has them: floor(ln(max(|t|, 1)) / 0.301),
// at most the last one.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

// The numbers from 1 to 2^31, cut into eight cells an octave, each of which has the bound of one
// bucket at most: a bucket is found by a table and a comparison, without a logarithm.
class TimeBuckets {
 public:
  explicit TimeBuckets(int64_t buckets) : cells_(kCells) {
    int64_t bucket = 0;
    for (int64_t cell = 0; cell < kCells; ++cell) {
      const float from = FromBits((kOne + cell) << kShift);
      while (Bound(bucket + 1) <= from) ++bucket;
      const bool is_last = bucket >= buckets - 1;
      cells_[cell] = {is_last ? INFINITY : Bound(bucket + 1),
                      static_cast<int32_t>(std::min(bucket, buckets - 1))};
    }
  }

  // The bucket of a time, the difference of two, which wraps around as XLA's does.
  int64_t operator()(int32_t later, int32_t earlier) const {
    const int32_t seconds = static_cast<int32_t>(static_cast<uint32_t>(later) - static_cast<uint32_t>(earlier));
    const float length = std::max(std::fabs(static_cast<float>(seconds)), 1.0f);
    uint32_t bits;
    std::memcpy(&bits, &length, 4);
    const Cell& cell = cells_[(bits >> kShift) - kOne];
    return cell.bucket + (length >= cell.next);
  }

 private:
  struct Cell {
    float next;  // the least number of the next bucket
    int32_t bucket;
  };

  static constexpr float kOctave = 0.301f;
  static constexpr int kShift = 20;
  static constexpr uint32_t kOne = 127 << 3;
  static constexpr int64_t kCells = 32 * 8;

  static float FromBits(uint32_t bits) {
    float number;
    std::memcpy(&number, &bits, 4);
    return number;
  }

  // The least float32 of a bucket, as the formula is rounded in float32.
  static float Bound(int64_t bucket) {
    const auto of = [](float number) { return std::log(number) / kOctave; };
    const float least = static_cast<float>(bucket);
    float bound = std::exp(kOctave * least);
    while (of(std::nextafter(bound, 0.0f)) >= least) bound = std::nextafter(bound, 0.0f);
    while (of(bound) < least) bound = std::nextafter(bound, INFINITY);
    return bound;
  }

  std::vector<Cell> cells_;
};
