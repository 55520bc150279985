// caravan bench cache: what a cache of experts would have hit, had it been there when routing was
// recorded.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <iterator>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "base/status_macros.h"
#include "cli/commands.h"
#include "cli/named_numbers.h"
#include "worker/experts/cache_replay.h"
#include "worker/experts/routing_trace.h"
#include "worker/experts/synthetic_routing.h"

namespace caravan {
namespace {

struct BenchCacheFlags {
  std::vector<std::string> traces;
  std::string synthetic;
  std::vector<int> slots;
  std::vector<double> shares = {0.03, 0.1, 0.25, 0.5};
  std::vector<std::string> policies{std::begin(kCachePolicyNames), std::end(kCachePolicyNames)};
};

/// What --synthetic says.
struct SyntheticLoad {
  SyntheticRouting::Options routing;
  int64_t tokens = 2000;
  int64_t topic = 0;   // tokens after which another begins; 0: never
  int64_t prompt = 0;  // tokens of the prompt that begins a topic
};

absl::StatusOr<SyntheticLoad> ParseSyntheticLoad(absl::string_view text) {
  SyntheticLoad load;
  CARAVAN_RETURN_IF_ERROR(
      Annotate(ParseNamedNumbers(text, {{"zipf", &load.routing.zipf},
                                        {"sticky", &load.routing.sticky},
                                        {"layers", &load.routing.num_layers},
                                        {"experts", &load.routing.n_routed_experts},
                                        {"k", &load.routing.num_experts_per_tok},
                                        {"rows", &load.routing.num_sequences},
                                        {"tokens", &load.tokens},
                                        {"topic", &load.topic},
                                        {"prompt", &load.prompt},
                                        {"seed", &load.routing.seed}}),
               "--synthetic"));
  if (const absl::Status valid = SyntheticRouting::Check(load.routing); !valid.ok()) {
    return Annotate(valid, "--synthetic");
  }
  constexpr int64_t kMax = 1000000;
  for (const int64_t count : {load.tokens, load.topic, load.prompt}) {
    if (count >= 0 && count <= kMax) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("--synthetic: tokens, topic and prompt are 0 to ", kMax, ", not ", count));
  }
  return load;
}

/// One step of `rows` rows.
void Step(SyntheticRouting& routing, int64_t rows, RoutingObserver& observer) {
  std::vector<int32_t> expert_ids;
  std::vector<float> weights;
  for (int layer = 0; layer < routing.options().num_layers; ++layer) {
    expert_ids.clear();
    weights.clear();
    for (int64_t i = 0; i < rows; ++i) {
      const SyntheticRouting::Row row = routing.Next(layer);
      expert_ids.insert(expert_ids.end(), row.expert_ids.begin(), row.expert_ids.end());
      weights.insert(weights.end(), row.weights.begin(), row.weights.end());
    }
    observer.OnRouting(layer, rows, expert_ids, weights);
  }
}

CacheReplay ReplayOf(const SyntheticLoad& load) {
  const SyntheticRouting::Options& options = load.routing;
  std::printf(
      "made-up routing: zipf=%g,sticky=%g,layers=%d,experts=%d,k=%d,rows=%d,tokens=%lld,"
      "topic=%lld,prompt=%lld,seed=%llu\n",
      options.zipf, options.sticky, options.num_layers, options.n_routed_experts,
      options.num_experts_per_tok, options.num_sequences, static_cast<long long>(load.tokens),
      static_cast<long long>(load.topic), static_cast<long long>(load.prompt),
      static_cast<unsigned long long>(options.seed));
  CacheReplay replay({0, options.num_layers, options.n_routed_experts, 0});
  SyntheticRouting routing(options);
  int64_t until_topic = 0;
  for (int64_t done = 0; done < load.tokens; done += options.num_sequences) {
    if (until_topic <= 0 && (load.topic > 0 || done == 0)) {
      if (done > 0) routing.BeginTopic();
      if (load.prompt > 0) Step(routing, load.prompt, replay);
      until_topic = load.topic;
    }
    Step(routing, options.num_sequences, replay);
    until_topic -= options.num_sequences;
  }
  return replay;
}

/// One after the other. They must be of one stage.
absl::StatusOr<CacheReplay> ReplayOf(const std::vector<std::string>& paths) {
  std::vector<std::unique_ptr<RoutingTraceReader>> readers;
  for (const std::string& path : paths) {
    CARAVAN_ASSIGN_OR_RETURN(readers.emplace_back(), RoutingTraceReader::Open(path));
    if (readers.back()->header() != readers.front()->header()) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": is of another model or of other layers than ", paths.front()));
    }
  }
  const RoutingTraceHeader& header = readers.front()->header();
  CacheReplay replay({header.first_layer, header.num_layers, header.n_routed_experts, 0});
  for (size_t i = 0; i < paths.size(); ++i) {
    CARAVAN_ASSIGN_OR_RETURN(const int64_t torn, readers[i]->Read(replay));
    if (torn > 0) {
      std::fprintf(stderr, "caravan: %s: ignored a torn block of %lld bytes at its end\n",
                   paths[i].c_str(), static_cast<long long>(torn));
    }
  }
  std::printf("model %016llx, layers %d to %d, %d of %d experts a token and layer\n",
              static_cast<unsigned long long>(header.model_fingerprint), header.first_layer,
              header.first_layer + header.num_layers - 1, header.num_experts_per_tok,
              header.n_routed_experts);
  return replay;
}

absl::StatusOr<CacheReplay> ReplayOf(const BenchCacheFlags& flags) {
  if (!flags.traces.empty()) return ReplayOf(flags.traces);
  CARAVAN_ASSIGN_OR_RETURN(const SyntheticLoad load, ParseSyntheticLoad(flags.synthetic));
  return ReplayOf(load);
}

std::string Cells(const CacheReplay::Counts& counts) {
  if (counts.uses == 0) return " - | - |";
  return absl::StrFormat(" %.1f%% | %.2f |",
                         100 * static_cast<double>(counts.hits) / static_cast<double>(counts.uses),
                         static_cast<double>(counts.reads()) /
                             static_cast<double>(std::max<int64_t>(1, counts.tokens)));
}

absl::Status BenchCache(const BenchCacheFlags& flags) {
  for (const std::string& policy : flags.policies) {
    if (const absl::Status known = MakeCachePolicy(policy).status(); !known.ok()) {
      return Annotate(known, "--policy");
    }
  }
  CARAVAN_ASSIGN_OR_RETURN(const CacheReplay replay, ReplayOf(flags));
  ExpertCache::Shape shape = replay.shape();
  const int experts = shape.num_layers * shape.experts_per_layer;
  std::vector<int> sizes = flags.slots;
  for (const double share : flags.slots.empty() ? flags.shares : std::vector<double>()) {
    sizes.push_back(static_cast<int>(std::lround(share * experts)));
  }
  bool described = false;
  for (const int slots : sizes) {
    if (slots > experts) {
      return absl::InvalidArgumentError(
          absl::StrCat("--slots: ", slots, " are more than the ", experts, " experts"));
    }
    shape.num_slots = slots;
    std::vector<std::pair<std::string, CacheReplay::Result>> rows;
    for (const std::string& policy : flags.policies) {
      CARAVAN_ASSIGN_OR_RETURN(std::unique_ptr<CachePolicy> made, MakeCachePolicy(policy));
      ExpertCache cache(shape, std::move(made));
      rows.emplace_back(policy, replay.Run(cache));
    }
    int64_t fewest = rows.front().second.reads();
    for (const auto& [policy, result] : rows) fewest = std::min(fewest, result.reads());
    rows.emplace_back("optimum", replay.RunOptimum(slots));
    if (!std::exchange(described, true)) {
      const CacheReplay::Result& any = rows.front().second;
      std::printf(
          "%lld tokens in steps of up to %lld rows, %lld in steps of more (prompts); a read brings "
          "one of %d experts\n\n"
          "| slots | share | policy | hits | reads a token | prompts: hits | reads a token |\n"
          "|---|---|---|---|---|---|---|\n",
          static_cast<long long>(any.decode.tokens), static_cast<long long>(kMaxDecodeRows),
          static_cast<long long>(any.prompt.tokens), experts);
    }
    for (const auto& [policy, result] : rows) {
      const bool best = policy != "optimum" && result.reads() == fewest;
      std::printf("| %d | %.1f%% | %s |%s%s\n", slots, 100.0 * slots / experts,
                  best ? absl::StrCat("**", policy, "**").c_str() : policy.c_str(),
                  Cells(result.decode).c_str(), Cells(result.prompt).c_str());
    }
  }
  std::printf("\n**bold**: the fewest reads of its size; optimum: of any choice of what stays\n");
  return absl::OkStatus();
}

}  // namespace

void AddBenchCacheCommand(CLI::App& bench, CommandBody& body) {
  CLI::App* const command = bench.add_subcommand(
      "cache", "Replay recorded or made-up routing through caches of experts: hits and reads");
  const auto flags = std::make_shared<BenchCacheFlags>();
  AddConfigOption(*command);
  CLI::Option* const trace =
      command
          ->add_option("--trace", flags->traces,
                       "A routing trace (docs/routing-trace.md); may be repeated, for several "
                       "traces of one stage, which are replayed one after the other")
          ->type_name("FILE")
          ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  CLI::Option* const synthetic =
      command
          ->add_option("--synthetic", flags->synthetic,
                       "Instead of --trace, made-up routing: zipf=0.8,sticky=0.3,layers=58,"
                       "experts=256,k=8,rows=1,tokens=2000,topic=0,prompt=0,seed=1, of which any "
                       "part may be left out")
          ->type_name("NAME=NUMBER,...")
          ->excludes(trace);
  CLI::Option* const share =
      command
          ->add_option("--share", flags->shares,
                       "Slots of the cache, as shares of the stage's experts")
          ->delimiter(',')
          ->check(CLI::Range(0.0, 1.0))
          ->capture_default_str();
  command->add_option("--slots", flags->slots, "The same as numbers")
      ->delimiter(',')
      ->check(CLI::Range(0, 1 << 30))
      ->excludes(share);
  command->add_option("--policy", flags->policies, absl::StrJoin(kCachePolicyNames, ", "))
      ->delimiter(',')
      ->capture_default_str();
  command->callback([flags, synthetic, &body] {
    if (flags->traces.empty() && synthetic->empty()) {
      throw CLI::RequiredError("--trace or --synthetic");
    }
    body = [flags] { return ReportStatus(BenchCache(*flags)); };
  });
}

}  // namespace caravan
