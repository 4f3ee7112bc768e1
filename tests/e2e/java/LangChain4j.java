import com.fasterxml.jackson.annotation.JsonProperty;
import dev.langchain4j.agent.tool.P;
import dev.langchain4j.agent.tool.Tool;
import dev.langchain4j.data.message.UserMessage;
import dev.langchain4j.exception.HttpException;
import dev.langchain4j.exception.LangChain4jException;
import dev.langchain4j.model.anthropic.AnthropicChatModel;
import dev.langchain4j.model.anthropic.AnthropicStreamingChatModel;
import dev.langchain4j.model.anthropic.AnthropicTokenUsage;
import dev.langchain4j.model.chat.Capability;
import dev.langchain4j.model.chat.ChatModel;
import dev.langchain4j.model.chat.StreamingChatModel;
import dev.langchain4j.model.chat.request.ChatRequest;
import dev.langchain4j.model.chat.response.ChatResponse;
import dev.langchain4j.model.chat.response.PartialResponse;
import dev.langchain4j.model.chat.response.PartialResponseContext;
import dev.langchain4j.model.chat.response.StreamingChatResponseHandler;
import dev.langchain4j.model.openai.OpenAiChatModel;
import dev.langchain4j.model.openai.OpenAiResponsesChatModel;
import dev.langchain4j.model.openai.OpenAiResponsesStreamingChatModel;
import dev.langchain4j.model.openai.OpenAiStreamingChatModel;
import dev.langchain4j.model.openai.OpenAiTokenUsage;
import dev.langchain4j.model.output.TokenUsage;
import dev.langchain4j.service.AiServices;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;

/** langchain4j by the models of the provider that is named: answers whole and streamed, AI services with a tool and with a class, errors. */
public final class LangChain4j {
  interface Assistant {
    String answer(String text);
  }

  interface Extractor {
    Person person(String text);
  }

  record Person(@JsonProperty(required = true) String name, @JsonProperty(required = true) int age) {}

  public static final class Weather {
    @Tool(name = "get_weather", value = "The weather of a city")
    public String weatherOf(@P(name = "city", value = "Its name") String city) {
      return city + ": sunny";
    }
  }

  /** Counts the pieces of an answer, or leaves it at the first. */
  private static final class Reader implements StreamingChatResponseHandler {
    final CompletableFuture<ChatResponse> answer = new CompletableFuture<>();
    final CompletableFuture<Boolean> left = new CompletableFuture<>();
    final boolean leaves;
    int pieces = 0;

    Reader(boolean leaves) {
      this.leaves = leaves;
    }

    @Override
    public void onPartialResponse(PartialResponse piece, PartialResponseContext context) {
      pieces++;
      if (!leaves) return;
      context.streamingHandle().cancel();
      left.complete(context.streamingHandle().isCancelled());
    }

    @Override
    public void onCompleteResponse(ChatResponse response) {
      answer.complete(response);
    }

    @Override
    public void onError(Throwable error) {
      answer.completeExceptionally(error);
    }
  }

  private static final String BASE = Checks.URL + "/v1";

  private static ChatModel model(String provider, String key, Double temperature) {
    return switch (provider) {
      case "openai" -> OpenAiChatModel.builder()
          .baseUrl(BASE)
          .apiKey(key)
          .modelName(Checks.MODEL)
          .temperature(temperature)
          .maxRetries(0)
          .supportedCapabilities(Capability.RESPONSE_FORMAT_JSON_SCHEMA)
          .strictJsonSchema(true)
          .build();
      case "responses" -> OpenAiResponsesChatModel.builder()
          .baseUrl(BASE)
          .apiKey(key)
          .modelName(Checks.MODEL)
          .temperature(temperature)
          .strictJsonSchema(true)
          .build();
      default -> AnthropicChatModel.builder()
          .baseUrl(BASE)
          .apiKey(key)
          .modelName(Checks.MODEL)
          .temperature(temperature)
          .maxRetries(0)
          .maxTokens(2000)
          .supportedCapabilities(Capability.RESPONSE_FORMAT_JSON_SCHEMA)
          .build();
    };
  }

  private static StreamingChatModel streamingModel(String provider) {
    return switch (provider) {
      case "openai" -> OpenAiStreamingChatModel.builder().baseUrl(BASE).apiKey(Checks.KEY).modelName(Checks.MODEL).build();
      case "responses" -> OpenAiResponsesStreamingChatModel.builder().baseUrl(BASE).apiKey(Checks.KEY).modelName(Checks.MODEL).build();
      default -> AnthropicStreamingChatModel.builder().baseUrl(BASE).apiKey(Checks.KEY).modelName(Checks.MODEL).maxTokens(2000).build();
    };
  }

  private static int cachedTokens(TokenUsage usage) {
    if (usage instanceof OpenAiTokenUsage openai) return openai.inputTokensDetails().cachedTokens();
    return ((AnthropicTokenUsage) usage).cacheReadInputTokens();
  }

  private static Object told(ChatModel model, String text) {
    try {
      model.chat(text);
    } catch (LangChain4jException error) {
      int status = error.getCause() instanceof HttpException cause ? cause.statusCode() : 0;
      return List.of(status, error.getClass().getSimpleName(), error.getMessage());
    }
    throw new IllegalStateException("it was answered");
  }

  public static void main(String[] args) throws Exception {
    String provider = args[0];
    ChatModel model = model(provider, Checks.KEY, null);
    StreamingChatModel streaming = streamingModel(provider);
    Checks.check(
        "chat",
        text -> {
          var answer = model.chat(ChatRequest.builder().messages(UserMessage.from(text)).build());
          return List.of(answer.aiMessage().text(), answer.finishReason(), cachedTokens(answer.tokenUsage()));
        });
    Checks.check(
        "stream",
        text -> {
          var reader = new Reader(false);
          streaming.chat(text, reader);
          var answer = reader.answer.get();
          return List.of(answer.aiMessage().text(), reader.pieces, answer.tokenUsage().outputTokenCount());
        });
    Checks.check("tools", text -> AiServices.builder(Assistant.class).chatModel(model).tools(new Weather()).build().answer(text));
    Checks.check("parse", text -> AiServices.create(Extractor.class, model).person(text));
    Checks.check("refused", text -> told(model, text));
    Checks.check("bad_field", text -> told(model(provider, Checks.KEY, 9.0), text));
    Checks.check("bad_key", text -> told(model(provider, "wrong", null), text));
    Checks.check(
        "broken",
        text -> {
          var reader = new Reader(false);
          streaming.chat(text, reader);
          try {
            return "it ended: " + reader.answer.get().finishReason();
          } catch (ExecutionException error) {
            return error.getCause().toString();
          }
        });
    Checks.check(
        "abort",
        text -> {
          var reader = new Reader(true);
          streaming.chat(text, reader);
          return reader.left.get();
        });
  }

  private LangChain4j() {}
}
