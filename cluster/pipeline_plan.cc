#include "cluster/pipeline_plan.h"

#include "absl/strings/str_cat.h"

namespace caravan {
namespace {

constexpr uint32_t kMaxLayers = 1 << 16;  // far past any model, and fits an int

}  // namespace

v1::Stage ToProto(const StageSpec& stage) {
  v1::Stage proto;
  proto.set_first_layer(static_cast<uint32_t>(stage.first_layer));
  proto.set_end_layer(static_cast<uint32_t>(stage.end_layer));
  proto.set_embeds(stage.embeds);
  proto.set_has_head(stage.has_head);
  proto.set_drafts(stage.drafts);
  return proto;
}

absl::StatusOr<StageSpec> StageFromProto(const v1::Stage& stage) {
  if (stage.first_layer() >= stage.end_layer() || stage.end_layer() > kMaxLayers) {
    return absl::InvalidArgumentError(absl::StrCat("stage: layers [", stage.first_layer(), ", ",
                                                   stage.end_layer(), ") cannot be"));
  }
  return StageSpec{static_cast<int>(stage.first_layer()), static_cast<int>(stage.end_layer()),
                   stage.embeds(), stage.has_head(), stage.drafts()};
}

}  // namespace caravan
