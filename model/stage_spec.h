#ifndef CARAVAN_MODEL_STAGE_SPEC_H_
#define CARAVAN_MODEL_STAGE_SPEC_H_

// Which part of a model one worker holds.

#include <string>

#include "absl/strings/str_cat.h"

namespace caravan {

struct StageSpec {
  int first_layer = 0;
  int end_layer = 0;      // one past the last
  bool embeds = false;    // turns token ids into hidden states first
  bool has_head = false;  // ends with the final norm, the projection and sampling
  bool drafts = false;    // with the head: holds the layer of multi-token prediction, and drafts

  int num_layers() const { return end_layer - first_layer; }
  /// Layers with keys and values; that of multi-token prediction is the last.
  int num_kv_layers() const { return num_layers() + (drafts ? 1 : 0); }
  friend bool operator==(const StageSpec&, const StageSpec&) = default;
};

/// Layers [first_layer, end_layer) of `num_layers`, without drafts: the first stage embeds, the
/// last has the head.
inline StageSpec StageOf(int first_layer, int end_layer, int num_layers) {
  return {.first_layer = first_layer,
          .end_layer = end_layer,
          .embeds = first_layer == 0,
          .has_head = end_layer == num_layers};
}

/// "layers 0..30 with embedding", last layer included, as people count.
inline std::string DescribeStage(const StageSpec& stage) {
  return absl::StrCat("layers ", stage.first_layer, "..", stage.end_layer - 1,
                      stage.embeds && stage.has_head ? " with embedding and head"
                      : stage.embeds                 ? " with embedding"
                      : stage.has_head               ? " with head"
                                                     : "",
                      stage.drafts ? " and MTP layer" : "");
}

}  // namespace caravan

#endif  // CARAVAN_MODEL_STAGE_SPEC_H_
