#include "cli/plan_table.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/string_view.h"
#include "base/byte_size.h"

namespace caravan {
namespace {

constexpr char kCardRow[] = "%-6s  %-32s  %-10s  %-10s  %-10s  %-10s  %-10s  %-10s  %s\n";
constexpr char kHopRow[] = "%-6s  %-32s  %-4s  %s\n";

/// ", 61.2% what", of something.
void AppendShare(uint64_t part, uint64_t all, absl::string_view what, std::string& text) {
  if (all == 0) return;
  absl::StrAppendFormat(&text, ", %.1f%% %s",
                        100 * static_cast<double>(part) / static_cast<double>(all), what);
}

/// "cpu", "cuda:0".
std::string ShortDevice(const v1::WorkerStatus& worker) {
  return worker.device().substr(0, worker.device().find(' '));
}

std::string Percent(uint64_t part, uint64_t all) {
  return absl::StrCat(all == 0 ? 0 : 100 * part / all, "%");
}

/// ", next 43%" of what it gets ready for the next plan.
std::string DescribePreparation(const v1::WorkerStatus& worker) {
  if (!worker.has_preparation()) return "";
  if (worker.preparation().done()) return ", next ready";
  const v1::StageProgress& progress = worker.preparation().progress();
  return absl::StrCat(", next ", Percent(progress.loaded_bytes(), progress.total_bytes()));
}

std::string DescribeState(const v1::WorkerStatus& worker) {
  const std::string next = DescribePreparation(worker);
  switch (worker.state()) {
    case v1::WORKER_STATE_SPARE:
      if (!worker.drained() && worker.held_back_s() > 0) {
        return absl::StrFormat("held %.0f s", worker.held_back_s());
      }
      return absl::StrCat(worker.drained() ? "drained" : "spare", next);
    case v1::WORKER_STATE_LOADING:
      return absl::StrCat("loading ", Percent(worker.loaded_bytes(), worker.load_bytes()));
    case v1::WORKER_STATE_READY:
      return absl::StrCat("ready", next);
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
  // Since the worker joined. A card's are counted in a table of their own.
  const v1::ExpertLoad& load = worker.load().experts();
  std::string counted;
  if (!worker.on_card()) {
    AppendShare(load.hits(), load.hits() + load.misses(), "hits", counted);
  }
  AppendShare(load.guesses_used(), load.guesses(), "of guesses used", counted);
  if (load.failovers() > 0) absl::StrAppend(&counted, ", ", load.failovers(), " bad reads");
  return absl::StrCat(text, counted);
}

/// Where the experts were computed that steps chose since the worker joined: "61.2% on the card,
/// 3.1% copied there, 35.7% by the CPU, 92.0% of those two in memory, 120 promoted, 33.1 GiB
/// copied".
std::string DescribeCardExperts(const v1::WorkerStatus& worker) {
  const v1::CardExpertLoad& load = worker.load().card_experts();
  const uint64_t chosen = load.hits() + load.copies() + load.on_cpu();
  if (chosen == 0) return worker.expert_slots() == 0 ? "all on the card" : "none yet";
  std::string counted;
  AppendShare(load.hits(), chosen, "on the card", counted);
  AppendShare(load.copies(), chosen, "copied there", counted);
  AppendShare(load.on_cpu(), chosen, "by the CPU", counted);
  const v1::ExpertLoad& below = worker.load().experts();
  AppendShare(below.hits(), below.hits() + below.misses(), "of those two in memory", counted);
  absl::StrAppend(&counted, ", ", load.promotions(), " promoted, ",
                  FormatByteSize(static_cast<int64_t>(load.copied_bytes())), " copied");
  return counted.substr(2);
}

/// A card's memory, by what has it.
void AppendCard(const v1::WorkerStatus& worker, std::string& text) {
  const bool ready = worker.state() == v1::WORKER_STATE_READY;
  const auto size = [ready](uint64_t bytes) {
    return ready ? FormatByteSize(static_cast<int64_t>(bytes)) : std::string("-");
  };
  const uint64_t weights =
      worker.loaded_bytes() - std::min(worker.expert_bytes(), worker.loaded_bytes());
  const uint64_t counted = worker.loaded_bytes() + worker.kv_bytes();
  absl::StrAppendFormat(&text, kCardRow, absl::StrCat(worker.worker_id()), worker.device(),
                        FormatByteSize(static_cast<int64_t>(worker.memory_budget_bytes())),
                        size(worker.card_bytes()), size(weights), size(worker.expert_bytes()),
                        size(worker.kv_bytes()),
                        size(worker.card_bytes() - std::min(worker.card_bytes(), counted)),
                        ready ? DescribeCardExperts(worker) : "-");
}

/// What is to be said of cards: their memory and experts, and by what steps go on from them or to
/// them.
void AppendCards(const v1::GetStatusResponse& status, std::string& text) {
  const auto on_card = [](const v1::WorkerStatus& worker) { return worker.on_card(); };
  if (std::none_of(status.workers().begin(), status.workers().end(), on_card)) return;
  absl::StrAppend(&text, "\n");
  absl::StrAppendFormat(&text, kCardRow, "WORKER", "CARD", "VRAM", "TAKEN", "WEIGHTS", "EXPERTS",
                        "KV", "STEPS", "EXPERTS COMPUTED");
  for (const v1::WorkerStatus& worker : status.workers()) {
    if (worker.on_card()) AppendCard(worker, text);
  }
  const auto has_next = [](const v1::WorkerStatus& worker) { return worker.has_next(); };
  if (std::none_of(status.workers().begin(), status.workers().end(), has_next)) return;
  absl::StrAppend(&text, "\n");
  absl::StrAppendFormat(&text, kHopRow, "WORKER", "SENDS ON TO", "OVER", "WHY");
  for (const v1::WorkerStatus& worker : status.workers()) {
    if (!worker.has_next()) continue;
    absl::StrAppendFormat(&text, kHopRow, absl::StrCat(worker.worker_id()),
                          worker.next().neighbour(), worker.next().by_nccl() ? "NCCL" : "TCP",
                          worker.next().why());
  }
}

}  // namespace

namespace {

/// One line: the prediction, to be seen beside what comes.
void AppendForecast(const v1::GetStatusResponse& status, std::string& text) {
  const v1::PlanForecast& forecast = status.forecast();
  const auto slowest = std::find_if(status.workers().begin(), status.workers().end(),
                                    [&](const v1::WorkerStatus& worker) {
                                      return worker.worker_id() == forecast.slowest_worker_id();
                                    });
  absl::StrAppendFormat(
      &text, "foretold  %.2f tokens/s of %d jobs, %.2f of one alone; slowest: %s, by its %s\n",
      forecast.tokens_per_s(), forecast.jobs(), forecast.tokens_per_s_alone(),
      slowest == status.workers().end() ? "?" : slowest->name(), forecast.bottleneck());
}

}  // namespace

std::string FormatStatus(const v1::GetStatusResponse& status) {
  std::string text =
      absl::StrCat("model     ", status.model(), "\n", "pipeline  ", status.pipeline_state());
  if (status.plan_version() > 0) absl::StrAppend(&text, " (plan ", status.plan_version(), ")");
  absl::StrAppend(&text, "\n");
  if (status.has_forecast()) AppendForecast(status, text);
  if (status.workers().empty()) return absl::StrCat(text, "no workers\n");
  const bool some_offload =
      std::any_of(status.workers().begin(), status.workers().end(),
                  [](const v1::WorkerStatus& worker) { return worker.expert_slots() > 0; });
  constexpr char kRow[] = "%-6s  %-16s  %-21s  %-6s  %-16s  %-24s  %-10s  %-10s  %s\n";
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
        &text, absl::StrFormat(
                   kRow, absl::StrCat(worker.worker_id()), worker.name(), worker.address(),
                   ShortDevice(worker), DescribeState(worker),
                   spare ? "-" : DescribeLayers(worker.stage()),
                   spare ? "-" : FormatByteSize(static_cast<int64_t>(worker.stage_bytes())),
                   FormatByteSize(static_cast<int64_t>(worker.memory_budget_bytes())),
                   last_columns(ready ? DescribeKvTokens(worker) : "-", DescribeInMemory(worker))));
  }
  AppendCards(status, text);
  return text;
}

}  // namespace caravan
