#include "cli/plan_table.h"

#include <algorithm>

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
      return absl::StrFormat("loading %d%%", worker.load_bytes() == 0
                                                 ? 0
                                                 : static_cast<int>(100 * worker.loaded_bytes() /
                                                                    worker.load_bytes()));
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

/// "8192" or "8192, 4096 on disk".
std::string DescribeKvTokens(const v1::WorkerStatus& worker) {
  const uint64_t block = worker.kv_block_tokens();
  std::string tokens = absl::StrCat(worker.kv_blocks() * block);
  if (worker.kv_blocks_on_disk() > 0) {
    absl::StrAppend(&tokens, ", ", worker.kv_blocks_on_disk() * block, " on disk");
  }
  return tokens;
}

/// Of a stage's weights: "18.1 GiB, 312 of 2560 experts, 61.4% hits" or "all".
std::string DescribeInMemory(const v1::WorkerStatus& worker) {
  if (worker.expert_slots() == 0) return worker.has_stage() ? "all" : "-";
  // What loading reads is always active; the slots fill later.
  const std::string experts =
      absl::StrCat(worker.expert_slots(), " of ", worker.experts(), " experts");
  if (worker.state() != v1::WORKER_STATE_READY) return experts;
  const std::string text =
      absl::StrCat(FormatByteSize(static_cast<int64_t>(worker.loaded_bytes())), ", ", experts);
  // Since the worker joined.
  const v1::ExpertLoad& load = worker.load().experts();
  std::string counted;
  const auto append_share = [&counted](uint64_t part, uint64_t all, absl::string_view what) {
    if (all == 0) return;
    absl::StrAppendFormat(&counted, ", %.1f%% %s",
                          100 * static_cast<double>(part) / static_cast<double>(all), what);
  };
  append_share(load.hits(), load.hits() + load.misses(), "hits");
  append_share(load.guesses_used(), load.guesses(), "of guesses used");
  if (load.failovers() > 0) absl::StrAppend(&counted, ", ", load.failovers(), " bad reads");
  return absl::StrCat(text, counted);
}

}  // namespace

std::string FormatStatus(const v1::GetStatusResponse& status) {
  std::string text =
      absl::StrCat("model     ", status.model(), "\n", "pipeline  ", status.pipeline_state());
  if (status.plan_version() > 0) absl::StrAppend(&text, " (plan ", status.plan_version(), ")");
  absl::StrAppend(&text, "\n");
  if (status.workers().empty()) return absl::StrCat(text, "no workers\n");
  const bool some_offload =
      std::any_of(status.workers().begin(), status.workers().end(),
                  [](const v1::WorkerStatus& worker) { return worker.expert_slots() > 0; });
  constexpr char kRow[] = "%-6s  %-16s  %-21s  %-6s  %-12s  %-24s  %-10s  %-10s  %s\n";
  // The last column is there where it says something.
  const auto last_columns = [some_offload](const std::string& kv_tokens,
                                           const std::string& in_memory) {
    return some_offload ? absl::StrFormat("%-9s  %s", kv_tokens, in_memory) : kv_tokens;
  };
  absl::StrAppend(
      &text, absl::StrFormat(kRow, "WORKER", "NAME", "ADDRESS", "DEVICE", "STATE", "LAYERS",
                             "WEIGHTS", "MEMORY", last_columns("KV TOKENS", "WEIGHTS IN MEMORY")));
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
            last_columns(ready ? DescribeKvTokens(worker) : "-", DescribeInMemory(worker))));
  }
  return text;
}

}  // namespace caravan
