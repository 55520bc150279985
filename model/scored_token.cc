#include "model/scored_token.h"

namespace caravan {

v1::TokenScore ToProto(const ScoredToken& token) {
  v1::TokenScore proto;
  proto.set_token_id(static_cast<uint32_t>(token.token_id));
  proto.set_log_probability(token.log_probability);
  for (const ScoredToken::Alternative& alternative : token.alternatives) {
    v1::TokenProbability& out = *proto.add_alternatives();
    out.set_token_id(static_cast<uint32_t>(alternative.token_id));
    out.set_log_probability(alternative.log_probability);
  }
  return proto;
}

ScoredToken FromProto(const v1::TokenScore& proto) {
  ScoredToken token;
  token.token_id = static_cast<int32_t>(proto.token_id());
  token.log_probability = proto.log_probability();
  token.alternatives.reserve(static_cast<size_t>(proto.alternatives_size()));
  for (const v1::TokenProbability& alternative : proto.alternatives()) {
    token.alternatives.push_back(
        {static_cast<int32_t>(alternative.token_id()), alternative.log_probability()});
  }
  return token;
}

}  // namespace caravan
