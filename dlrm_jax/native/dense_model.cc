// DLRM's dense model in predictions, outside of XLA: bottom MLP, dot interaction and top MLP.
//
// Samples go through all of it in blocks, so that activations stay in a core's cache. A sample's
// logit is the same bits in any batch and for any number of threads: each is summed by itself, in
// one order.

#include <algorithm>
#include <cstdint>
#include <vector>

#include "dense_layers.h"
#include "interaction.h"
#include "threads.h"

namespace {

using dense_layers::Linear;
using packing::Scratch;

// As `native.dense_model` describes it to ctypes.
struct Model {
  int64_t bottoms, tops;  // layers of each MLP
  const Linear* bottom;
  const Linear* top;
  int64_t vectors;         // that interact with the bottom MLP's
  const int64_t* columns;  // first of each vector
  int64_t self_interaction;
};

// Starting a thread pays off from some samples on: its core also reads all weights.
constexpr int64_t kSamplesPerThread = 32;

// Samples of a block: fewer can't fill the threads, the activations of more fall out of the cache.
int64_t BlockRows(int64_t samples, int64_t threads) {
  using packing::kPanel;
  const int64_t each = packing::FilledUp((samples + threads - 1) / threads, kPanel);
  return std::clamp<int64_t>(each, kPanel, 2 * kPanel);
}

}  // namespace

// The words of a layer's packed weights.
extern "C" int64_t DlrmJaxPackedWords(const void* layer) {
  return dense_layers::PackedWords(*static_cast<const Linear*>(layer));
}

// Packs a layer's kernel into its `packed`; the kernel isn't read again.
extern "C" void DlrmJaxPackLayer(const void* layer) {
  dense_layers::Pack(*static_cast<const Linear*>(layer));
}

// The logits of n samples: dense [n, D] and vectors [n, columns]. The top MLP has one output, and an
// input for the bottom MLP's vector and all pairs.
extern "C" void DlrmJaxDenseModel(const void* described, const float* dense, const float* vectors,
                                  int64_t n, int64_t columns, float* logits, int64_t threads) {
  const Model& model = *static_cast<const Model*>(described);
  const std::vector<Linear> bottom(model.bottom, model.bottom + model.bottoms);
  const std::vector<Linear> top(model.top, model.top + model.tops);
  const int64_t in = bottom.front().in, dim = bottom.back().out, width = top.front().in;
  threads = std::clamp<int64_t>(n / kSamplesPerThread, 1, threads);
  const int64_t size = BlockRows(n, threads);
  OnThreads(threads, (n + size - 1) / size, [&](int64_t block) {
    const int64_t begin = block * size, rows = std::min(size, n - begin);
    const Scratch x(rows * dim), z(rows * width);
    float* const from = reinterpret_cast<float*>(x.get());
    float* const to = reinterpret_cast<float*>(z.get());
    dense_layers::Forward(bottom, dense + begin * in, rows, from);
    interaction::Vectors given{from, {}, rows, dim, model.self_interaction != 0, false};
    for (int64_t i = 0; i < model.vectors; ++i)
      given.pooled.push_back({vectors + begin * columns + model.columns[i], columns});
    const interaction::Interaction interact(given);
    for (int64_t i = 0; i < rows; i += interaction::kLanes)
      interact(i, std::min<int64_t>(interaction::kLanes, rows - i), to);
    dense_layers::Forward(top, to, rows, logits + begin);
  });
}
