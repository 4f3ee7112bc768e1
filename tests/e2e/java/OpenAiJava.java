import com.openai.azure.AzureOpenAIServiceVersion;
import com.openai.azure.AzureUrlPathMode;
import com.openai.azure.credential.AzureApiKeyCredential;
import com.openai.client.OpenAIClient;
import com.openai.client.okhttp.OpenAIOkHttpClient;
import com.openai.core.JsonValue;
import com.openai.core.http.StreamResponse;
import com.openai.errors.OpenAIServiceException;
import com.openai.helpers.ChatCompletionAccumulator;
import com.openai.models.FunctionDefinition;
import com.openai.models.FunctionParameters;
import com.openai.models.chat.completions.ChatCompletionChunk;
import com.openai.models.chat.completions.ChatCompletionCreateParams;
import com.openai.models.chat.completions.ChatCompletionFunctionTool;
import com.openai.models.chat.completions.ChatCompletionStreamOptions;
import com.openai.models.chat.completions.ChatCompletionToolMessageParam;
import com.openai.models.responses.FunctionTool;
import com.openai.models.responses.Response;
import com.openai.models.responses.ResponseCreateParams;
import com.openai.models.responses.ResponseInputItem;
import com.openai.models.responses.ResponseStreamEvent;
import java.util.ArrayList;
import java.util.Iterator;
import java.util.List;
import java.util.Map;
import java.util.stream.Collectors;

/** openai-java: chat completions and responses, whole and streamed, rounds of tools, JSON by a class, errors, the Azure paths. */
public final class OpenAiJava {
  public static final class Person {
    public String name;
    public int age;
  }

  /** The schema of the tool's arguments. */
  private static final Map<String, JsonValue> WEATHER =
      Map.of(
          "type", JsonValue.from("object"),
          "properties", JsonValue.from(Map.of("city", Map.of("type", "string"))),
          "required", JsonValue.from(List.of("city")));

  private static OpenAIClient client(String key) {
    return OpenAIOkHttpClient.builder().baseUrl(Checks.URL + "/v1").apiKey(key).maxRetries(0).build();
  }

  private static ChatCompletionCreateParams.Builder ask(String text) {
    return ChatCompletionCreateParams.builder().model(Checks.MODEL).addUserMessage(text);
  }

  private static Object told(Runnable call) {
    try {
      call.run();
    } catch (OpenAIServiceException error) {
      return List.of(error.statusCode(), error.type().orElse(""), error.getMessage());
    }
    throw new IllegalStateException("it was answered");
  }

  private static Object rounds(OpenAIClient client, String text) throws Exception {
    FunctionDefinition weather =
        FunctionDefinition.builder()
            .name("get_weather")
            .description("The weather of a city")
            .parameters(FunctionParameters.builder().putAllAdditionalProperties(WEATHER).build())
            .build();
    ChatCompletionCreateParams.Builder body = ask(text).addTool(ChatCompletionFunctionTool.builder().function(weather).build());
    while (true) {
      var message = client.chat().completions().create(body.build()).choices().get(0).message();
      var calls = message.toolCalls().orElse(List.of());
      if (calls.isEmpty()) return message.content().orElseThrow();
      body.addMessage(message);
      for (var call : calls) {
        var function = call.asFunction();
        body.addMessage(
            ChatCompletionToolMessageParam.builder()
                .toolCallId(function.id())
                .content(Checks.weatherOf(function.function().arguments()))
                .build());
      }
    }
  }

  private static ResponseCreateParams.Builder respond(String text) {
    return ResponseCreateParams.builder().model(Checks.MODEL).input(text);
  }

  private static String textOf(Response response) {
    return response.output().stream()
        .flatMap(item -> item.message().stream())
        .flatMap(message -> message.content().stream())
        .flatMap(content -> content.outputText().stream())
        .map(part -> part.text())
        .collect(Collectors.joining());
  }

  /** Sends only what is new: the proxy knows the rest by the response's id. */
  private static Object roundsOfResponses(OpenAIClient client, String text) throws Exception {
    FunctionTool weather =
        FunctionTool.builder()
            .name("get_weather")
            .description("The weather of a city")
            .parameters(FunctionTool.Parameters.builder().putAllAdditionalProperties(WEATHER).build())
            .strict(false)
            .build();
    ResponseCreateParams.Builder body = respond(text).addTool(weather);
    while (true) {
      Response response = client.responses().create(body.build());
      var calls = response.output().stream().flatMap(item -> item.functionCall().stream()).toList();
      if (calls.isEmpty()) return textOf(response);
      var results = new ArrayList<ResponseInputItem>();
      for (var call : calls) {
        String output = Checks.weatherOf(call.arguments());
        results.add(ResponseInputItem.ofFunctionCallOutput(ResponseInputItem.FunctionCallOutput.builder().callId(call.callId()).output(output).build()));
      }
      body.previousResponseId(response.id()).inputOfResponse(results);
    }
  }

  public static void main(String[] args) throws Exception {
    OpenAIClient client = client(Checks.KEY);
    Checks.check(
        "chat",
        text -> {
          var answer = client.chat().completions().create(ask(text).build());
          var choice = answer.choices().get(0);
          var cached = answer.usage().orElseThrow().promptTokensDetails().orElseThrow().cachedTokens().orElseThrow();
          return List.of(choice.message().content().orElseThrow(), choice.finishReason().asString(), cached);
        });
    Checks.check(
        "stream",
        text -> {
          var body = ask(text).streamOptions(ChatCompletionStreamOptions.builder().includeUsage(true).build()).build();
          var whole = ChatCompletionAccumulator.create();
          try (StreamResponse<ChatCompletionChunk> chunks = client.chat().completions().createStreaming(body)) {
            long pieces =
                chunks.stream()
                    .peek(whole::accumulate)
                    .flatMap(chunk -> chunk.choices().stream())
                    .filter(choice -> !choice.delta().content().orElse("").isEmpty())
                    .count();
            var answer = whole.chatCompletion();
            return List.of(answer.choices().get(0).message().content().orElseThrow(), pieces, answer.usage().orElseThrow().completionTokens());
          }
        });
    Checks.check("tools", text -> rounds(client, text));
    Checks.check(
        "parse",
        text -> client.chat().completions().create(ask(text).responseFormat(Person.class).build()).choices().get(0).message().content().orElseThrow());
    Checks.check(
        "responses",
        text -> {
          Response first = client.responses().create(respond(text).build());
          var second = respond("And now?").previousResponseId(first.id()).build();
          try (StreamResponse<ResponseStreamEvent> events = client.responses().createStreaming(second)) {
            String pieces = events.stream().flatMap(event -> event.outputTextDelta().stream()).map(event -> event.delta()).collect(Collectors.joining());
            return List.of(textOf(first), pieces);
          }
        });
    Checks.check("responses_tools", text -> roundsOfResponses(client, text));
    Checks.check(
        "responses_parse",
        text ->
            client.responses().create(respond(text).text(Person.class).build()).output().stream()
                .flatMap(item -> item.message().stream())
                .flatMap(message -> message.content().stream())
                .flatMap(content -> content.outputText().stream())
                .findFirst()
                .orElseThrow());
    Checks.check(
        "azure",
        text -> {
          OpenAIClient azure =
              OpenAIOkHttpClient.builder()
                  .baseUrl(Checks.URL)
                  .credential(AzureApiKeyCredential.create(Checks.KEY))
                  .azureServiceVersion(AzureOpenAIServiceVersion.getV2024_10_21())
                  .azureUrlPathMode(AzureUrlPathMode.LEGACY)
                  .maxRetries(0)
                  .build();
          return azure.chat().completions().create(ask(text).build()).choices().get(0).message().content().orElseThrow();
        });
    Checks.check("refused", text -> told(() -> client.chat().completions().create(ask(text).build())));
    Checks.check("bad_field", text -> told(() -> client.chat().completions().create(ask(text).temperature(9.0).build())));
    Checks.check("bad_key", text -> told(() -> client("wrong").chat().completions().create(ask(text).build())));
    Checks.check(
        "broken",
        text -> {
          try (StreamResponse<ChatCompletionChunk> chunks = client.chat().completions().createStreaming(ask(text).build())) {
            chunks.stream().forEach(chunk -> {});
          } catch (RuntimeException error) {
            return error.toString();
          }
          throw new IllegalStateException("the stream ended well");
        });
    Checks.check(
        "abort",
        text -> {
          try (StreamResponse<ChatCompletionChunk> chunks = client.chat().completions().createStreaming(ask(text).build())) {
            Iterator<ChatCompletionChunk> next = chunks.stream().iterator();
            while (next.hasNext()) if (!next.next().choices().get(0).delta().content().orElse("").isEmpty()) return true;
          }
          return false;
        });
    client.close();
  }

  private OpenAiJava() {}
}
