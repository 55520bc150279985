#include "cli/expert_flags.h"

#include <iterator>
#include <map>
#include <vector>

#include "absl/strings/str_join.h"
#include "cli/validators.h"
#include "worker/experts/cache_policy.h"

namespace caravan {
namespace {

const std::map<std::string, ExpertStore::Verify>& VerifyNames() {
  static const auto& names =
      *new std::map<std::string, ExpertStore::Verify>{{"never", ExpertStore::Verify::kNever},
                                                      {"first", ExpertStore::Verify::kFirst},
                                                      {"every", ExpertStore::Verify::kEvery}};
  return names;
}

const std::map<std::string, ExpertStore::Guesses>& GuessesNames() {
  static const auto& names = *new std::map<std::string, ExpertStore::Guesses>{
      {"off", ExpertStore::Guesses::kNever},
      {"auto", ExpertStore::Guesses::kWhereTheyPay},
      {"on", ExpertStore::Guesses::kAlways}};
  return names;
}

}  // namespace

void ExpertFlags::AddTo(CLI::App& command) {
  command
      .add_option("--expert-policy", store.policy,
                  "Which experts on disk stay in memory: those used last (lru), most often of late "
                  "(lfu), or with most of the router's weight of late (router)")
      ->check(CLI::IsMember(
          std::vector<std::string>(std::begin(kCachePolicyNames), std::end(kCachePolicyNames))))
      ->type_name(absl::StrJoin(kCachePolicyNames, "|"))
      ->capture_default_str();
  command
      .add_option_function<std::string>(
          "--guess-experts",
          [this](const std::string& when) { store.guesses = GuessesNames().at(when); },
          "Read ahead what the next layer's router is likely to choose: where that is seen to save "
          "time (auto), always or never")
      ->check(CLI::IsMember(GuessesNames()))
      ->type_name("auto|on|off")
      ->default_str("auto");
  command
      .add_option_function<std::string>(
          "--verify-experts",
          [this](const std::string& when) { store.verify = VerifyNames().at(when); },
          "When the bytes of an expert that was read from disk are compared with their hash")
      ->check(CLI::IsMember(VerifyNames()))
      ->type_name("never|first|every")
      ->default_str("first");
  command
      .add_option("--record-routing", record_routing,
                  "Record which experts the routers choose, for caravan bench cache: a stage whose "
                  "layers with experts are M to N - 1 appends to FILE-M-N")
      ->check(NotEmpty())
      ->type_name("FILE");
}

}  // namespace caravan
