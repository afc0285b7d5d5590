// HSTU's pointwise attention inside sequences, and its derivative, see attention/pointwise_attention.py.
//
// A sequence and a head are a task. Its queries go in tiles, for each of which the keys up to it go
// in tiles, too: scores, weights and their derivatives stay in the caches, and the products stop at
// the diagonal. All products are those of products.h: up to 12 rows and 32 columns in registers.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "attention_blocks.h"
#include "time_buckets.h"

namespace pointwise_attention {

using namespace attention;
using packing::Scratch;

constexpr int64_t kQueries = 96;  // of a tile: eight times the rows that products take at once
constexpr int64_t kKeys = 128;    // of a tile

struct Bias {
  const float* by_distance;  // of farther keys before that of nearer ones: that of distance d at -d
  const float* by_time;      // of each bucket; null without
  const TimeBuckets* buckets;
  const int32_t* times;       // of the sequence's tokens
  const int32_t* next_times;  // of those that follow
};

// Sums of gradients of a bias over one task.
struct BiasSums {
  std::vector<float> by_distance;  // that of distance d at -d from the place behind the length
  std::vector<Floats> by_time;     // in 16 parts, so that no addition waits for another
};

// A head of a sequence: its keys, packed, and the scores of its queries.
class Task {
 public:
  Task(HeadRows query, HeadRows key, HeadRows value, const Bias& bias, int64_t length)
      : query_(query),
        key_(key),
        value_(value),
        bias_(bias),
        length_(length),
        filled_(FilledUp(length, kPanel)),
        keys_(filled_ * key.width),
        are_ascending_(filled_ / kPanel) {
    PackTransposed(key, length, Floats32(keys_));
    for (int64_t p = 0; bias.by_time && p < filled_ / kPanel; ++p)
      are_ascending_[p] = std::is_sorted(bias.times + p * kPanel,
                                         bias.times + std::min(length, (p + 1) * kPanel));
  }

  void Forward(float scale, HeadRows out) {
    Scratch values(filled_ * kPanel * value_.panels()), sums(kQueries * kPanel * value_.panels());
    Scratch weights(kQueries * kKeys);
    float *const w = Floats32(weights), *const sum = Floats32(sums);
    Pack(value_, length_, filled_, 1, Floats32(values));
    for (int64_t q = 0; q < length_; q += kQueries) {
      const int64_t queries = std::min(kQueries, length_ - q);
      std::fill_n(sum, kQueries * kPanel * value_.panels(), 0.0f);
      for (int64_t k = 0; k < q + queries; k += kKeys) {
        ForBlocks(q, queries, k, [&](int64_t row, int64_t rows, int64_t column, Block scores) {
          for (int64_t i = 0; i < rows; ++i)
            for (int half = 0; half < kPanel; half += kTile) {
              const Floats s = Load(scores[i] + half);
              const Floats weight = Seen(q + row + i, column + half, s * Sigmoid(s));
              Store(w + (row + i) * kKeys + column - k + half, weight);
            }
        });
        AddByQuery(q, queries, k, w, Floats32(values), value_.panels(), sum);
      }
      Unpack(sum, queries, kQueries, scale, {out[q], out.step, out.width});
    }
  }

  // The derivative, given that of the results.
  void Backward(float scale, HeadRows of_out, HeadRows of_query, HeadRows of_key, HeadRows of_value, BiasSums& of_bias) {
    const int64_t a = key_.panels(), v = value_.panels(), width = value_.width;
    Scratch transposed(filled_ * width), keys(filled_ * kPanel * a);
    Scratch by_key(filled_ * kPanel * a), by_value(filled_ * kPanel * v);
    Scratch own_queries(kQueries * kPanel * a), own_out(kQueries * kPanel * v);
    Scratch rows_of_out(kQueries * width), by_query(kQueries * kPanel * a);
    Scratch weights(kQueries * kKeys), of_scores(kQueries * kKeys);
    PackTransposed(value_, length_, Floats32(transposed));
    Pack(key_, length_, filled_, 1, Floats32(keys));
    std::fill_n(Floats32(by_key), filled_ * kPanel * a, 0.0f);
    std::fill_n(Floats32(by_value), filled_ * kPanel * v, 0.0f);
    float *const w = Floats32(weights), *const d = Floats32(of_scores), *const g = Floats32(rows_of_out);
    for (int64_t q = 0; q < length_; q += kQueries) {
      const int64_t queries = std::min(kQueries, length_ - q);
      Pack({query_[q], query_.step, query_.width}, queries, kQueries, 1, Floats32(own_queries));
      Pack({of_out[q], of_out.step, width}, queries, kQueries, scale, Floats32(own_out));
      for (int64_t i = 0; i < queries; ++i)
        for (int64_t j = 0; j < width; ++j) g[i * width + j] = scale * of_out[q + i][j];
      std::fill_n(Floats32(by_query), kQueries * kPanel * a, 0.0f);
      for (int64_t k = 0; k < q + queries; k += kKeys) {
        if (k + kKeys > q) {  // blocks behind the queries are read beside others
          std::fill_n(w, kQueries * kKeys, 0.0f);
          std::fill_n(d, kQueries * kKeys, 0.0f);
        }
        ForBlocks(q, queries, k, [&](int64_t row, int64_t rows, int64_t column, Block scores) {
          alignas(64) float of_weights[kRowsAtOnce][kPanel];
          Multiply(rows, LeftOf(g + row * width, width), Floats32(transposed) + column * width, width,
                   of_weights);
          for (int64_t i = 0; i < rows; ++i) {
            float* const to = scores[i];
            for (int half = 0; half < kPanel; half += kTile) {
              const int64_t query = q + row + i, place = (row + i) * kKeys + column - k + half;
              const Floats s = Load(to + half), sigmoid = Sigmoid(s), silu = s * sigmoid;
              const Floats slope = sigmoid + silu * (1.0f - sigmoid);
              const Floats of_score = Seen(query, column + half, Load(of_weights[i] + half) * slope);
              Store(w + place, Seen(query, column + half, silu));
              Store(d + place, of_score);
              Store(to + half, of_score);
            }
            AddBiasGradient(q + row + i, column, to, of_bias);
          }
        });
        AddByQuery(q, queries, k, d, Floats32(keys), a, Floats32(by_query));
        AddByKey(q, queries, k, d, Floats32(own_queries), a, Floats32(by_key));
        AddByKey(q, queries, k, w, Floats32(own_out), v, Floats32(by_value));
      }
      Unpack(Floats32(by_query), queries, kQueries, 1, {of_query[q], of_query.step, of_query.width});
    }
    Unpack(Floats32(by_key), length_, filled_, 1, of_key);
    Unpack(Floats32(by_value), length_, filled_, 1, of_value);
  }

 private:
  static float* Floats32(const Scratch& scratch) { return reinterpret_cast<float*>(scratch.get()); }

  // Numbers of 16 keys, zeros for those behind the query.
  static Floats Seen(int64_t query, int64_t key, Floats x) {
    if (key + kTile - 1 <= query) return x;
    const Ints place = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return Select(place <= static_cast<int32_t>(query - key), x, Floats{});
  }

  // Calls use(row, rows, first key, scores) for the blocks of a tile that aren't all behind the
  // queries; rows count from the tile's first query.
  template <typename Use>
  void ForBlocks(int64_t q, int64_t queries, int64_t k, const Use& use) const {
    alignas(64) float scores[kRowsAtOnce][kPanel];
    const int64_t end = std::min(k + kKeys, q + queries);
    for (int64_t column = k; column < end; column += kPanel)
      for (int64_t row = 0; row < queries; row += kRowsAtOnce) {
        const int64_t rows = std::min<int64_t>(kRowsAtOnce, queries - row);
        if (column > q + row + rows - 1) continue;
        Multiply(rows, LeftOf(query_[q + row], query_.step), Floats32(keys_) + column * key_.width,
                 key_.width, scores);
        for (int64_t i = 0; i < rows; ++i) AddBias(q + row + i, column, scores[i]);
        use(row, rows, column, scores);
      }
  }

  // sums of queries += a tile's numbers times rows of keys.
  void AddByQuery(int64_t q, int64_t queries, int64_t k, const float* tile, const float* panels,
                  int64_t count, float* sums) const {
    for (int64_t p = 0; p < count; ++p, panels += filled_ * kPanel, sums += kQueries * kPanel)
      for (int64_t row = 0; row < queries; row += kRowsAtOnce) {
        const int64_t rows = std::min<int64_t>(kRowsAtOnce, queries - row);
        const int64_t depth = std::min(k + kKeys, q + row + rows) - k;
        if (depth > 0)
          AddProduct(rows, LeftOf(tile + row * kKeys, kKeys), panels + k * kPanel, depth,
                     sums + row * kPanel);
      }
  }

  // sums of keys += a tile's numbers, transposed, times rows of queries.
  void AddByKey(int64_t q, int64_t queries, int64_t k, const float* tile, const float* panels,
                int64_t count, float* sums) const {
    const int64_t end = std::min(k + kKeys, q + queries);
    for (int64_t p = 0; p < count; ++p, panels += kQueries * kPanel, sums += filled_ * kPanel)
      for (int64_t key = k; key < end; key += kRowsAtOnce) {
        const int64_t first = std::max(key - q, int64_t{0});  // no query before sees the key
        const Left left = LeftOf(tile + first * kKeys + key - k, 1, kKeys);
        AddProduct(std::min<int64_t>(kRowsAtOnce, end - key), left, panels + first * kPanel,
                   queries - first, sums + key * kPanel);
      }
  }

  // Calls one(bucket) if the keys of a panel that a query sees have one bucket, or else
  // each(i, bucket).
  template <typename One, typename Each>
  void ForBuckets(int64_t query, int64_t column, const One& one, const Each& each) const {
    const int64_t last = std::min(column + kPanel - 1, query);
    const int32_t next = bias_.next_times[query];
    const int32_t* const times = bias_.times;
    // Of ascending times, those between have no other buckets than the first and the last one.
    if (are_ascending_[column / kPanel] && next >= times[last]) {
      const int64_t bucket = (*bias_.buckets)(next, times[column]);
      if (bucket == (*bias_.buckets)(next, times[last])) return one(bucket);
    }
    for (int64_t key = column; key <= last; ++key)
      each(key - column, (*bias_.buckets)(next, times[key]));
  }

  void AddBias(int64_t query, int64_t column, float* scores) const {
    const float* const by_distance = bias_.by_distance + column - query;
    for (int half = 0; half < kPanel; half += kTile)
      Store(scores + half, Load(scores + half) + Load(by_distance + half));
    if (!bias_.by_time) return;
    ForBuckets(
        query, column,
        [&](int64_t bucket) {
          for (int i = 0; i < kPanel; ++i) scores[i] += bias_.by_time[bucket];
        },
        [&](int64_t i, int64_t bucket) { scores[i] += bias_.by_time[bucket]; });
  }

  void AddBiasGradient(int64_t query, int64_t column, const float* of_scores, BiasSums& sums) const {
    float* const by_distance = sums.by_distance.data() + length_ + column - query;
    const Floats low = Load(of_scores), high = Load(of_scores + kTile);
    Store(by_distance, Load(by_distance) + low);
    Store(by_distance + kTile, Load(by_distance + kTile) + high);
    if (!bias_.by_time) return;
    ForBuckets(
        query, column, [&](int64_t bucket) { sums.by_time[bucket] += low + high; },
        [&](int64_t i, int64_t bucket) { sums.by_time[bucket][i % kTile] += of_scores[i]; });
  }

  const HeadRows query_, key_, value_;
  const Bias& bias_;
  const int64_t length_, filled_;
  Scratch keys_;
  std::vector<char> are_ascending_;
};

}  // namespace pointwise_attention
