#include "cli/plan_table.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/byte_size.h"

namespace caravan {
namespace {

std::string DescribeState(const v1::WorkerStatus& worker) {
  switch (worker.state()) {
    case v1::WORKER_STATE_SPARE:
      return "spare";
    case v1::WORKER_STATE_LOADING:
      return absl::StrFormat("loading %d%%", worker.stage_bytes() == 0
                                                 ? 0
                                                 : static_cast<int>(100 * worker.loaded_bytes() /
                                                                    worker.stage_bytes()));
    case v1::WORKER_STATE_READY:
      return "ready";
    default:
      return "?";
  }
}

std::string DescribeLayers(const v1::Stage& stage) {
  return absl::StrCat(stage.embeds() ? "embedding, " : "", stage.first_layer(), "..",
                      stage.end_layer() - 1, stage.has_head() ? ", head" : "",
                      stage.drafts() ? ", MTP" : "");
}

}  // namespace

std::string FormatStatus(const v1::GetStatusResponse& status) {
  std::string text =
      absl::StrCat("model     ", status.model(), "\n", "pipeline  ", status.pipeline_state());
  if (status.plan_version() > 0) absl::StrAppend(&text, " (plan ", status.plan_version(), ")");
  absl::StrAppend(&text, "\n");
  if (status.workers().empty()) return absl::StrCat(text, "no workers\n");
  constexpr char kRow[] = "%-6s  %-16s  %-21s  %-6s  %-12s  %-24s  %-10s  %-10s  %s\n";
  absl::StrAppend(&text, absl::StrFormat(kRow, "WORKER", "NAME", "ADDRESS", "DEVICE", "STATE",
                                         "LAYERS", "WEIGHTS", "MEMORY", "KV TOKENS"));
  for (const v1::WorkerStatus& worker : status.workers()) {
    const bool spare = worker.state() == v1::WORKER_STATE_SPARE;
    const bool ready = worker.state() == v1::WORKER_STATE_READY;
    absl::StrAppend(
        &text,
        absl::StrFormat(
            kRow, absl::StrCat(worker.worker_id()), worker.name(), worker.address(),
            worker.device(), DescribeState(worker), spare ? "-" : DescribeLayers(worker.stage()),
            spare ? "-" : FormatByteSize(static_cast<int64_t>(worker.stage_bytes())),
            FormatByteSize(static_cast<int64_t>(worker.memory_budget_bytes())),
            ready ? absl::StrCat(uint64_t{worker.kv_blocks()} * worker.kv_block_tokens()) : "-"));
  }
  return text;
}

}  // namespace caravan
