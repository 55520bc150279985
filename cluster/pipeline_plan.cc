#include "cluster/pipeline_plan.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/byte_size.h"

namespace caravan {
namespace {

constexpr uint32_t kMaxLayers = 1 << 16;  // far past any model, and fits an int

}  // namespace

std::string DescribePlan(const PipelinePlan& plan) {
  std::string text = absl::StrFormat("plan %d\n%8s  %9s  %9s  %s\n", plan.version, "worker",
                                     "weights", "KV cache", "stage");
  for (const StagePlan& stage : plan.stages) {
    absl::StrAppendFormat(&text, "%8d  %9s  %9s  %s\n", Number(stage.worker),
                          FormatByteSize(stage.weight_bytes), FormatByteSize(stage.kv_bytes),
                          DescribeStage(stage.stage));
  }
  return text;
}

v1::Stage ToProto(const StageSpec& stage) {
  v1::Stage proto;
  proto.set_first_layer(static_cast<uint32_t>(stage.first_layer));
  proto.set_end_layer(static_cast<uint32_t>(stage.end_layer));
  proto.set_embeds(stage.embeds);
  proto.set_has_head(stage.has_head);
  return proto;
}

absl::StatusOr<StageSpec> StageFromProto(const v1::Stage& stage) {
  if (stage.first_layer() >= stage.end_layer() || stage.end_layer() > kMaxLayers) {
    return absl::InvalidArgumentError(absl::StrCat("stage: layers [", stage.first_layer(), ", ",
                                                   stage.end_layer(), ") cannot be"));
  }
  return StageSpec{static_cast<int>(stage.first_layer()), static_cast<int>(stage.end_layer()),
                   stage.embeds(), stage.has_head()};
}

}  // namespace caravan
